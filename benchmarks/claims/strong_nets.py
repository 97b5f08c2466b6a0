"""Prediction and similarity matching on a narrow VGG8b, against backpropagation and Mono-Forward.

python -m benchmarks.claims.strong_nets

The rows are those of ``configs/strong/predsim_mnist_quarter.yaml`` in ``benchmarks/results``. Missing rows
are made, which takes about fifty minutes on one core for all of them.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import _record, claims
from bpfree.bench import runner
from bpfree.bench.arms import groups
from bpfree.bench.config import cells
from bpfree.bench.files import read_yaml
from bpfree.bench.results import Results
from bpfree.bench.statistics import estimate, paired

TITLE = "On a VGG, local prediction with similarity matching is as accurate as backpropagation, or more so"
HOLDS_IF = (
    "VGG8b at a quarter of its width, 10 000 MNIST images, 3 seeds, learning rates tuned alike: mean test "
    "accuracy of predsim at least that of its BP baseline, and of Mono-Forward on the same net"
)
NAME = "predsim_mnist_quarter"
CONFIG = Path(__file__).parents[2] / "configs" / "strong" / f"{NAME}.yaml"
#: Arms that predsim must not be less accurate than.
RIVALS = ("backprop", "mono_forward")


def measure(config: Mapping[str, Any] | None = None, folder: Path | None = None) -> dict[str, Any]:
    """Make the missing rows in ``folder``, and compare predsim with each other arm by seed.

    Args:
        config: The experiment; by default the one in ``configs``.
        folder: Folder of the rows; by default in ``benchmarks/results``, only for the default experiment.

    Raises:
        RuntimeError: If a cell has failed.
        ValueError: If another experiment is given without a folder.
    """
    if config is not None and folder is None:
        raise ValueError("config: another experiment needs its own folder for rows")
    found = cells(dict(config or read_yaml(CONFIG)))
    rows = runner.run(found, Results(folder or _record.RESULTS / NAME))
    if failed := [row for row in rows if row["status"] != "ok"]:
        raise RuntimeError(f"{failed[0]['arm']}, seed {failed[0]['seed']}: {failed[0]['reason']}")
    (group,) = groups(rows)
    accuracy = {arm.name: arm.by_seed("metrics", "test_accuracy") for arm in group.arms}
    ours = accuracy["predsim"]
    ahead: dict[str, dict[str, Any]] = {}
    for name, theirs in accuracy.items():
        mean = estimate(list(theirs.values()))
        print(f"{name}: {100 * mean.mean:.2f} ± {100 * (mean.half or 0):.2f}", flush=True)
        if name != "predsim":
            effect = paired(ours, theirs)
            assert effect is not None
            ahead[name] = {"points": 100 * effect.value, "interval": effect.interval, "pairs": effect.n}
    figure = f"predsim {100 * statistics.mean(ours.values()):.2f} %, " + ", ".join(
        f"{name} {100 * statistics.mean(accuracy[name].values()):.2f} % ({ahead[name]['points']:+.2f})"
        for name in accuracy
        if name != "predsim"
    )
    return {
        "holds": all(ahead[name]["points"] >= 0 for name in RIVALS),
        "figure": figure,
        "test_accuracy": accuracy,
        "predsim_ahead_by": ahead,
        "threads": found[0].threads,
    }


if __name__ == "__main__":
    sys.exit(claims.run("strong_nets"))
