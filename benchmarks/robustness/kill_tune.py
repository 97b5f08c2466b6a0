"""Two commands with two workers each work on one study; one of them is killed repeatedly.

    python -m benchmarks.robustness.kill_tune [--kills 10] [--seed 0]

At the end each arm must have exactly its trials, no two with the same settings, and every attempt that was
killed must have been tried again with the same settings.
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

from optuna.trial import TrialState

from benchmarks._record import changes, record
from bpfree.tune.plan import make_plan
from bpfree.tune.storage import open_storage
from bpfree.tune.study import ArmStudy

TRIALS = 30

#: Seconds after a command's first trial within which it is killed.
LATEST_KILL_S = 4.0

CONFIG: dict[str, Any] = {
    "name": "kill_tune",
    "dataset": {"name": "digits", "train_size": 300},
    "net": {"name": "mlp", "hidden": [16]},
    "fit": {"epochs": 20, "batch_size": 16},
    "trainer": {"id": "mono_forward"},
    "controls": [{"trainer": {"id": "backprop"}}],
    "seeds": [0],
    "tune": {"sampler": "random", "pruner": "none", "seeds": [100, 101]},
}


def start(config: Path, out: Path) -> subprocess.Popen[bytes]:
    """Start a command on the study."""
    command = [sys.executable, "-m", "bpfree.tune", str(config), "--out", str(out), "--workers", "2"]
    with open(out.with_suffix(".log"), "ab") as log:
        return subprocess.Popen([*command, "--trials", str(TRIALS)], stdout=log, stderr=log)


def has_begun(studies: list[ArmStudy], process: subprocess.Popen[bytes]) -> bool:
    """Whether this command works on a trial."""
    return any(
        t.user_attrs.get("pulse", {}).get("pid") == process.pid for study in studies for t in study.all()
    )


def main() -> int:
    """Run, kill, compare; 0 if no trial was lost or repeated."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        config, out = Path(folder, "config.yaml"), Path(folder, "out")
        config.write_text(json.dumps(CONFIG))
        plan, storage = make_plan(CONFIG), open_storage(out)
        studies = [ArmStudy(plan, arm, storage, TRIALS) for arm in plan.arms]
        commands, kills = [start(config, out), start(config, out)], 0
        while kills < arguments.kills and all(command.poll() is None for command in commands):
            victim = commands.pop(0)
            while not has_begun(studies, victim) and victim.poll() is None:
                time.sleep(0.05)
            time.sleep(draw.uniform(0.0, LATEST_KILL_S))
            if victim.poll() is None:
                os.kill(victim.pid, signal.SIGKILL)
                kills += 1
            victim.wait()
            commands.append(start(config, out))
        codes = [command.wait() for command in commands]
        finished = [[t for t in s.all() if t.state == TrialState.COMPLETE] for s in studies]
        attempts = [[t for t in s.all() if t.state == TrialState.FAIL] for s in studies]
        figures = {
            "kills": kills,
            "trials_asked_for": TRIALS,
            "trials_finished": [len(trials) for trials in finished],
            "settings_tried": [len({json.dumps(t.params) for t in trials}) for trials in finished],
            "attempts_killed": [len(trials) for trials in attempts],
            "killed_and_not_tried_again": sum(
                all(t.params != lost.params for t in trials)
                for trials, failed in zip(finished, attempts, strict=True)
                for lost in failed
                if lost.params
            ),
        }
    sound = codes == [0, 0] and figures["trials_finished"] == figures["settings_tried"] == [TRIALS] * 2
    sound = sound and not figures["killed_and_not_tried_again"]
    return record("kill_tune", figures, sound and kills == arguments.kills, changes(parser, arguments))


if __name__ == "__main__":
    sys.exit(main())
