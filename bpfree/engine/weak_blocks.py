"""Blocks that are no better than chance, or worse than those below: the prediction may hide them."""

from __future__ import annotations

import warnings

from bpfree._drops import drops
from bpfree._types import JsonObject
from bpfree.engine.evaluation import Evaluator
from bpfree.engine.history import History
from bpfree.engine.run_state import RunState
from bpfree.engine.selection import BLOCK_SAMPLES, selecting_readouts
from bpfree.metrics import ACCURACY, largest_class

#: Half the width of a 95 % interval, in standard deviations.
Z = 1.96


def wilson(accuracy: float, n: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy on ``n`` samples, by Wilson's method."""
    center = (accuracy + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z * (accuracy * (1 - accuracy) / n + (Z / (2 * n)) ** 2) ** 0.5 / (1 + Z * Z / n)
    return center - half, center + half


def note_weak_blocks(state: RunState, evaluator: Evaluator | None) -> None:
    """Set `History.warnings` at the end of a run, and warn of what the accuracy of the prediction hides.

    It warns if the prediction is at chance, or if blocks are while the prediction is not.
    """
    state.history.warnings = []
    row = _final_evaluation(state.history, state.fit.restore_best)
    encoding = state.cascade.encoding
    if row is None or evaluator is None or not (state.metric.share and state.metric.greater_is_better):
        return
    blocks = {name: value for name, value in row["validation"].items() if name.startswith("block ")}
    state.history.warnings = drops(blocks)
    if state.metric.name != ACCURACY.name:
        return
    # The intervals need numbers of samples.
    labels, headline = encoding.metric_targets(evaluator.data)[: evaluator.n_samples], state.cascade.headline
    readouts = selecting_readouts(state.cascade, state.stages[-1])
    on_all = any(state.cascade.readout(name).scores_blocks for name in readouts)
    n, hidden = len(labels) if on_all else min(BLOCK_SAMPLES, len(labels)), list[str]()
    least = largest_class(labels[:n])
    prediction = wilson(row["validation"].get(headline, 0.0), len(labels))[0]
    for name, value in blocks.items():
        low, high = wilson(value, n)
        if low <= least:
            text = (
                f"{name} has {100 * value:.1f} % of {n} validation samples (95 % interval from "
                f"{100 * low:.1f} %): no better than chance ({100 * least:.1f} %, the largest class)"
            )
            state.history.warnings.append(text)
            hidden += [text] if prediction > max(high, least) else []
    accuracy, largest = row["validation"].get(headline), largest_class(labels)
    if accuracy is not None and accuracy <= largest:
        text = (
            f"the prediction by {headline!r} has {100 * accuracy:.1f} % of {len(labels)} validation "
            f"samples, no better than the largest class ({100 * largest:.1f} %): try another lr, or more "
            "epochs"
        )
        state.history.warnings.append(text)
        _warn(state, text)
    elif hidden:
        text = "; ".join(hidden)
        _warn(state, f"{text}. The prediction by {headline!r} hides it: try another lr or fewer blocks")


def _warn(state: RunState, text: str) -> None:
    if state.workers.is_first:
        warnings.warn(text, stacklevel=3)


def _final_evaluation(history: History, restored_best: bool) -> JsonObject | None:
    """The row with the evaluation of the weights that the run ended with."""
    evaluated = [row for row in history.rows if "validation" in row]
    if not evaluated or not history.stages:
        return None
    last = [row for row in evaluated if row["stage"] == evaluated[-1]["stage"]]
    epoch = history.stages[-1].get("best_epoch") if restored_best else None
    return next((row for row in reversed(last) if row["epoch"] == epoch), last[-1])
