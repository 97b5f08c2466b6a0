"""A result with all kinds of rows."""

from __future__ import annotations

import json
from pathlib import Path

from tests.bench.rows import Row, arm, row

NASTY = '<script>alert("x")</script> & "co"'


def sample() -> list[Row]:
    """Two settings, two protocols, three depths, a resumed row, a failed cell, and a name that is none."""
    good, bad = [0.95, 0.951, 0.952, 0.9505, 0.9515], [0.90, 0.902, 0.901, 0.9015, 0.9005]
    own = {
        "config__fit__patience": 3,
        "protocol": {"id": "A", "targets": [0.8, 0.97], "started": "2026-01-01"},
    }
    rows = arm("backprop", good, time__train_s=2.0, **own)
    rows += arm("mono_forward", bad, time__train_s=1.0, flops__train_total=5_000_000, **own)
    rows += arm(
        "cafo", [0.93, 0.96, 0.94, 0.95, 0.955], NASTY, **own, tuning={"trials": 12, "seconds": 345.0}
    )
    rows += arm("mono_forward", good, protocol={"id": "B", "matched_passes": 7.5, "jobs": 2})
    for depth in (3, 6):
        net = {"config__net": {"name": "mlp", "hidden": [32] * depth}}
        rows += arm("backprop", good[:1], **net, memory__saved_bytes=4096 * depth)
        rows += arm("mono_forward", bad[:1], **net, memory__saved_bytes=2048)
    rows[1]["segments"] = 2
    rows.append(row("forward_forward", 0, status="diverged", reason="the loss became nan"))
    return rows


def search(folder: Path) -> Path:
    """What a search leaves: a winner at an end of its range, and an arm whose trials all diverged."""
    won = {"number": 3, "state": "complete", "params": {"lr": 0.09871, "optimizer": NASTY}, "value": 0.9712}
    counts = {"trials": 12, "complete": 8, "pruned": 4, "diverged": 0, "seconds": 345.0}
    lost = {"trials": 12, "complete": 0, "pruned": 0, "diverged": 12, "seconds": 20.0}
    arms = [
        {"label": "mono_forward", **counts, "best": won, "edge": ["lr"]},
        {"label": "forward_forward", **lost},
    ]
    (folder / "plots").mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"schema": 1, "name": "rates", "arms": arms}))
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><circle r="4" cx="4" cy="4"/></svg>'
    (folder / "plots" / "mono_forward_history.svg").write_text(svg)
    return folder
