#!/usr/bin/env bash
# torch 2.13.0, CPU: optim.SGD, Adam and AdamW with fused=True.
# Guess: a parameter that is a view with gaps (one half of a larger tensor's columns) is updated like any other.
# Behavior: the fused kernels update contiguous memory from the first element of the parameter, independent of its
# strides. They write into elements of the base outside the parameter, and do not update elements of the parameter. A
# dense transposed parameter whose gradient has another memory layout gets the gradient's elements in the wrong places.
# No error is raised; with fused=False the result is correct.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.3.4
"$folder/env/bin/python" - <<'PYTHON'
import torch


def updated(kind, fused, make):
    base, view = make()
    parameter = torch.nn.Parameter(view)
    parameter.grad = torch.ones(view.shape)
    kind([parameter], lr=1.0, fused=fused).step()
    return base


def gaps():
    base = torch.zeros(2, 4)
    return base, base[:, :2]


for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
    plain, fused = (updated(kind, flag, gaps).round() for flag in (False, True))
    print(kind.__name__, "plain", plain.tolist(), "fused", fused.tolist())
    assert plain.tolist() == [[-1, -1, 0, 0], [-1, -1, 0, 0]], plain
    assert fused.tolist() == [[-1, -1, -1, -1], [0, 0, 0, 0]], fused

transposed = []
for flag in (False, True):
    parameter = torch.nn.Parameter(torch.zeros(3, 2).T)
    parameter.grad = torch.arange(6.0).view(2, 3)
    torch.optim.SGD([parameter], lr=1.0, fused=flag).step()
    transposed.append(parameter.tolist())
print("transposed, plain", transposed[0], "fused", transposed[1])
assert transposed == [[[0, -1, -2], [-3, -4, -5]], [[0, -2, -4], [-1, -3, -5]]], transposed
print("as described, torch", torch.__version__)
PYTHON
