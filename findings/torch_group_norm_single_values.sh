#!/usr/bin/env bash
# torch 2.13.0: nn.GroupNorm with one value in each group, as on a vector with as many groups as channels.
# Guess: it is refused, as nn.BatchNorm refuses a batch of one in training: the variance of one value is undefined.
# Behavior: whether it is refused depends on the batch, though groups are normalized sample by sample. One sample raises
# "Expected more than 1 value per channel"; from two samples on every output is 0 up to rounding, for any input,
# without a warning. A network with such a layer trains, and does not depend on its input.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.3.4
"$folder/env/bin/python" - <<'PYTHON'
import torch

torch.manual_seed(0)
norm = torch.nn.GroupNorm(16, 16)
try:
    norm(torch.randn(1, 16))
except ValueError as error:
    print("batch of 1:", error)
else:
    raise SystemExit("a batch of 1 was accepted")
largest = norm(100 * torch.randn(2, 16)).abs().max().item()
print("batch of 2, inputs of about 100: largest output", largest)
assert largest < 1e-2, largest
print("as described, torch", torch.__version__)
PYTHON
