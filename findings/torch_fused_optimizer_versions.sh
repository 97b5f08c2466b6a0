#!/usr/bin/env bash
# torch 2.13.0, CPU: optim.SGD, Adam and AdamW with fused=True, and autograd's check of tensors changed in place.
# Guess: a step between a forward pass and its backward pass is detected, as the weights that backward needs have
# changed.
# Behavior: fused steps do not raise the version counter of the parameters they change, so the check does not fail. The
# gradient is computed with the new weights, and is the gradient of no function. With fused=False a RuntimeError is
# raised. This affects code with several updates per batch: layers with local losses, or alternating updates.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.3.4
"$folder/env/bin/python" - <<'PYTHON'
import torch


def late_gradient(kind, fused):
    """The gradient of sum(p * p) at 1, if p is changed before the backward pass."""
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = kind([p], lr=0.5, fused=fused)
    first, second = (p * p).sum(), (3 * p).sum()
    second.backward()
    optimizer.step()
    p.grad = None
    try:
        first.backward()
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error), error
        return "raised", p._version
    return [round(value, 3) for value in p.grad.tolist()], p._version


for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
    plain, fused = late_gradient(kind, False), late_gradient(kind, True)
    print(kind.__name__, "plain", plain, "fused", fused)
    assert plain[0] == "raised" and plain[1] > 0, plain
    assert fused[0] != "raised" and fused[0] != [2.0, 2.0] and fused[1] == 0, fused
print("as described, torch", torch.__version__)
PYTHON
