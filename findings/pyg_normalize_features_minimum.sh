#!/usr/bin/env bash
# torch-geometric 2.8.1: transforms.NormalizeFeatures, documented as row-normalizing to a sum of one.
# Guess: each row is divided by its sum, and rows are independent.
# Behavior: the smallest value of the whole matrix is first subtracted from every element, negative or not. So one entry
# in one row changes all others: a row that sums to one changes, and a row of zeros becomes a uniform one. Only if the
# smallest value is 0 are rows divided by their sums; rows with sums below 1 do not change.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.3.4 torch-geometric==2.8.1
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import torch
import torch_geometric
from torch_geometric.data import Data
from torch_geometric.transforms import NormalizeFeatures


def normalized(rows):
    return NormalizeFeatures()(Data(x=torch.tensor(rows))).x


plain = normalized([[0.75, 0.25], [0.0, 0.0], [3.0, 1.0]])
below = normalized([[0.75, 0.25], [0.0, 0.0], [3.0, -1.0]])
above = normalized([[0.75, 0.25], [0.5, 0.5], [3.0, 1.0]])
small = normalized([[0.1, 0.1], [0.0, 4.0]])
print("smallest 0:", plain.tolist())
print("smallest -1:", below.tolist())
print("smallest 0.25:", above.tolist())
print("a sum below 1:", small.tolist())
assert torch.equal(plain, torch.tensor([[0.75, 0.25], [0.0, 0.0], [0.75, 0.25]]))
expected = torch.tensor([[1.75, 1.25], [1.0, 1.0], [4.0, 0.0]])
torch.testing.assert_close(below, expected / expected.sum(1, keepdim=True))
torch.testing.assert_close(above, torch.tensor([[0.5, 0.0], [0.25, 0.25], [2.75 / 3.5, 0.75 / 3.5]]))
assert torch.allclose(small[0], torch.tensor([0.1, 0.1]))
print("as described, torch-geometric", torch_geometric.__version__)
PYTHON
