"""Blocks that are no better than chance, or worse than those below: a headline accuracy may hide them."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from bpfree._drops import drops
from bpfree.metrics import ACCURACY, largest_class
from bpfree.trainers.history import History
from bpfree.trainers.judging import BLOCK_SAMPLES, judges

if TYPE_CHECKING:
    from bpfree.trainers.fitting import Fit

#: Half the width of a 95 % interval, in standard deviations.
Z = 1.96


def wilson(accuracy: float, n: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy on ``n`` samples, by Wilson's method."""
    center = (accuracy + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z * (accuracy * (1 - accuracy) / n + (Z / (2 * n)) ** 2) ** 0.5 / (1 + Z * Z / n)
    return center - half, center + half


def note_weak_blocks(run: Fit) -> None:
    """Set `History.warnings`, and warn of a prediction at chance, or of blocks at chance that it hides."""
    run.history.warnings = []
    row = _of_the_model(run.history, run.fit.restore_best)
    encoding, evaluator = run.cascade.encoding, run.evaluator
    if row is None or evaluator is None or not (run.metric.share and run.metric.greater_is_better):
        return
    blocks = {name: value for name, value in row["validation"].items() if name.startswith("block ")}
    run.history.warnings = drops(blocks)
    if run.metric.name != ACCURACY.name:
        return
    # The rest counts samples.
    answers, headline = encoding.answers(evaluator.data)[: evaluator.n_samples], run.cascade.headline
    whole = any(run.cascade.readout(name).tells_blocks for name in judges(run.cascade, run.stages[-1]))
    n, hidden = len(answers) if whole else min(BLOCK_SAMPLES, len(answers)), list[str]()
    least = largest_class(answers[:n])
    shown = wilson(row["validation"].get(headline, 0.0), len(answers))[0]
    for name, value in blocks.items():
        low, high = wilson(value, n)
        if low <= least:
            text = (
                f"{name} has {100 * value:.1f} % of {n} validation samples (95 % interval from "
                f"{100 * low:.1f} %): no better than chance ({100 * least:.1f} %, the largest class)"
            )
            run.history.warnings.append(text)
            hidden += [text] if shown > max(high, least) else []
    accuracy, largest = row["validation"].get(headline), largest_class(answers)
    if accuracy is not None and accuracy <= largest:
        text = (
            f"the prediction by {headline!r} has {100 * accuracy:.1f} % of {len(answers)} validation "
            f"samples, no better than the largest class ({100 * largest:.1f} %): try another lr, or more "
            "epochs"
        )
        run.history.warnings.append(text)
        _warn(run, text)
    elif hidden:
        _warn(
            run,
            f"{'; '.join(hidden)}. The prediction by {headline!r} hides it: try another lr or fewer blocks",
        )


def _warn(run: Fit, text: str) -> None:
    if run.crew.leads:
        warnings.warn(text, stacklevel=3)


def _of_the_model(history: History, best: bool) -> dict[str, Any] | None:
    """The evaluation of the weights that a run has ended with."""
    judged = [row for row in history.rows if "validation" in row]
    if not judged or not history.stages:
        return None
    last = [row for row in judged if row["stage"] == judged[-1]["stage"]]
    epoch = history.stages[-1].get("best_epoch") if best else None
    return next((row for row in reversed(last) if row["epoch"] == epoch), last[-1])
