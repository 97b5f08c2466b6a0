#!/usr/bin/env bash
# codecarbon 3.3.2: OfflineEmissionsTracker around a short block, with constant power given.
# Guess: energy is power times duration, for a block of any length; stop() counts the time since the last measurement.
# Behavior: a stop within 50 ms of the start (or of the last measurement) counts about one millisecond, independent of
# the reported duration: a block of 40 ms gets about a hundredth of its energy, one of 60 ms all of it. Nothing is
# logged. Means over many short training steps or inferences are far too low.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet codecarbon==3.3.2
cd "$folder"
HOME="$folder" "$folder/env/bin/python" - <<'PYTHON'
import time

import codecarbon
from codecarbon import OfflineEmissionsTracker


def counted(seconds):
    """Joules of memory over those of 10 W for the duration that the tracker itself reports."""
    tracker = OfflineEmissionsTracker(
        country_iso_code="FRA", save_to_file=False, log_level="critical", force_cpu_power=100,
        force_ram_power=10, allow_multiple_runs=True,
    )
    tracker.start()
    time.sleep(seconds)
    tracker.stop()
    data = tracker.final_emissions_data
    return data.duration, data.ram_energy * 3.6e6 / (10 * data.duration)


counted(0.5)  # the first start measures the load of the processor
shares = {seconds: counted(seconds) for seconds in (0.02, 0.04, 0.06, 0.5)}
for seconds, (duration, share) in shares.items():
    print(f"slept {seconds} s, reported duration {duration:.3f} s, energy counted: {share:.1%}")
for seconds, (duration, share) in shares.items():
    # On a busy machine a short block may take longer.
    assert duration > 0.05 or share < 0.2, (seconds, share)
    assert duration < 0.06 or share > 0.9, (seconds, share)
assert any(duration < 0.05 for duration, _ in shares.values()), "no block was short: the machine is too busy"
print("as described, codecarbon", codecarbon.__version__)
PYTHON
