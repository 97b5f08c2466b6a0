#!/usr/bin/env bash
# statsmodels 0.14.5: stats.multitest.multipletests with method="holm".
# Guess: adjusting two p values costs microseconds.
# Behavior: each call runs a full garbage collection of the process. Its time depends on the number of live objects and
# not on the number of p values: a report that adjusts many small families after importing large libraries takes many
# seconds. method="fdr_bh" does not collect.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet statsmodels==0.14.5 numpy==2.3.4 scipy==1.16.2
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import gc
import time

import statsmodels
from statsmodels.stats.multitest import multipletests


def collections(method):
    full = []
    gc.callbacks.append(lambda phase, info: full.append(phase == "start" and info["generation"] == 2))
    multipletests([0.01, 0.02], method=method)
    gc.callbacks.pop()
    return sum(full)


def milliseconds(method):
    started = time.perf_counter()
    for _ in range(5):
        multipletests([0.01, 0.02], method=method)
    return 200 * (time.perf_counter() - started)


gc.disable()
counts = {method: collections(method) for method in ("holm", "fdr_bh")}
before = milliseconds("holm")
objects = [[] for _ in range(3_000_000)]
after = milliseconds("holm")
print("full collections in one call:", counts)
print(f"milliseconds a call: {before:.1f}, with {len(objects):,} more objects alive {after:.1f}")
assert counts == {"holm": 1, "fdr_bh": 0}, counts
assert after > 2 * before
print("as described, statsmodels", statsmodels.__version__)
PYTHON
