#!/usr/bin/env bash
# torch 2.13.0: torch.utils.flop_counter.FlopCounterMode.
# Guess: an operation without a formula is refused, or warned about.
# Behavior: it counts as 0, without a warning: determinants, inverses, QR, sparse products, pairwise distances, and an
# LSTM on the CPU. A complex matrix product has the count of a real one, a quarter of its real multiplications.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.3.4
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import torch
from torch.utils.flop_counter import FlopCounterMode

a, z = torch.rand(32, 32), torch.rand(32, 32, dtype=torch.complex64)
runs = {
    "real product": lambda: a @ a,
    "complex product": lambda: z @ z,
    "linalg.det": lambda: torch.linalg.det(a),
    "linalg.inv": lambda: torch.linalg.inv(a),
    "linalg.qr": lambda: torch.linalg.qr(a),
    "matrix_exp": lambda: torch.matrix_exp(a),
    "sparse product": lambda: torch.sparse.mm(a.to_sparse(), a),
    "cdist": lambda: torch.cdist(a, a),
    "LSTM": lambda: torch.nn.LSTM(32, 32)(a.view(4, 8, 32)),
}
counts = {}
for name, run in runs.items():
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    counts[name] = counter.get_total_flops()
print(counts)
assert counts.pop("real product") == counts.pop("complex product") == 2 * 32**3
assert set(counts) - {name for name, count in counts.items() if count == 0} <= {"matrix_exp"}, counts
print("as described, torch", torch.__version__)
PYTHON
