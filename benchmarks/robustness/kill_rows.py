"""A bench of many short cells is killed at random moments: no row is lost, repeated or incomplete.

    python -m benchmarks.robustness.kill_rows [--kills 20] [--seed 0]

Every second kill includes the cells and the fork server. After each kill, the file must begin with
the earlier rows, byte by byte, and no cell may have two rows; an incomplete line must be removed at the next
start. At the end every cell has its row. `benchmarks.robustness.kill_resume` kills long cells, and compares
their weights.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._record import changes, record

#: Most seconds of work before a kill; every fifth kill comes within as many seconds of the start instead.
LATEST_KILL_S = 4.0

CONFIG: dict[str, Any] = {
    "name": "kill_rows",
    "dataset": {"name": "digits", "train_size": 200},
    "net": {"name": "mlp", "hidden": [16]},
    "fit": {"epochs": 1, "batch_size": 50},
    "trainer": {"id": "mono_forward"},
    "controls": [{"trainer": {"id": "backprop"}}],
    "seeds": list(range(160)),
}


class Rows:
    """The file of rows, compared with its last content."""

    def __init__(self, path: Path) -> None:
        self.path, self.content_seen = path, b""
        self.lost = self.twice = self.torn = 0

    def grew(self) -> bool:
        """Whether the file has grown since it was last read."""
        return self.path.exists() and self.path.stat().st_size > len(self.content_seen)

    def check(self) -> None:
        """Compare the file with its last content."""
        content = self.path.read_bytes() if self.path.exists() else b""
        complete, end, torn_line = content.rpartition(b"\n")
        self.torn += bool(torn_line)
        self.lost += not (complete + end).startswith(self.content_seen)
        self.content_seen = complete + end
        cells = [json.loads(line)["cell_id"] for line in self.content_seen.splitlines()]
        self.twice += len(cells) != len(set(cells))


def start(config: Path, out: Path) -> subprocess.Popen[bytes]:
    """Start a bench in its own process group."""
    command = [sys.executable, "-m", "bpfree.bench", "run", str(config), "--out", str(out)]
    with open(out.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def main() -> int:
    """Run, kill, compare; 0 if nothing was lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        config, out = Path(folder, "config.yaml"), Path(folder, "out")
        config.write_text(json.dumps(CONFIG))
        rows, moments, counts = Rows(out / "results.jsonl"), list[float](), list[int]()
        while len(moments) < arguments.kills:
            process, moment = start(config, out), draw.uniform(0.0, LATEST_KILL_S)
            while len(moments) % 5 and process.poll() is None and not rows.grew():
                time.sleep(0.01)
            time.sleep(moment)
            if process.poll() is not None:
                break  # the run ended earlier: fewer kills, which the result shows
            if len(moments) % 2:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                os.kill(process.pid, signal.SIGKILL)
            process.wait()
            moments.append(round(moment, 2))
            rows.check()
            counts.append(rows.content_seen.count(b"\n"))
        final = start(config, out).wait()
        rows.check()
        statuses = [json.loads(line)["status"] for line in rows.content_seen.splitlines()]
        cells = 2 * len(CONFIG["seeds"])
        figures = {
            "kills": len(moments),
            "seconds_of_work_before_each": moments,
            "rows_after_each_kill": counts,
            "torn_lines_met_and_cut": rows.torn,
            "times_a_row_was_lost": rows.lost,
            "times_a_cell_had_two_rows": rows.twice,
            "cells": cells,
            "rows_at_the_end": len(statuses),
        }
    sound = final == 0 and not rows.lost and not rows.twice and statuses == ["ok"] * cells
    at_work = sum(after > before for before, after in zip([0, *counts], counts, strict=False))
    passed = sound and len(moments) == arguments.kills and at_work >= len(moments) // 2
    return record("kill_rows", figures, passed, changes(parser, arguments))


if __name__ == "__main__":
    sys.exit(main())
