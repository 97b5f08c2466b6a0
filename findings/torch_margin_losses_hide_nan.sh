#!/usr/bin/env bash
# torch 2.13.0: multi_margin_loss and multilabel_margin_loss.
# Guess: a loss of scores that are NaN is NaN, so that a check of the loss finds weights that became NaN.
# Behavior: both return exactly 0.0: a margin is summed if it is larger than 0, and a comparison with NaN is false.
# Further training looks as if the task were solved. Cross-entropy, hinge and triplet losses return NaN.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.3.4
"$folder/env/bin/python" - <<'PYTHON'
import torch
import torch.nn.functional as F

scores = torch.full((3, 4), float("nan"))
losses = {
    "multi_margin_loss": F.multi_margin_loss(scores, torch.tensor([0, 1, 2])).item(),
    "multilabel_margin_loss": F.multilabel_margin_loss(scores, torch.zeros(3, 4, dtype=torch.long)).item(),
    "cross_entropy": F.cross_entropy(scores, torch.tensor([0, 1, 2])).item(),
    "multilabel_soft_margin_loss": F.multilabel_soft_margin_loss(scores, torch.ones(3, 4)).item(),
}
print(losses)
nan = {name for name, value in losses.items() if value != value}
assert nan == {"cross_entropy", "multilabel_soft_margin_loss"}, losses
assert losses["multi_margin_loss"] == losses["multilabel_margin_loss"] == 0.0
print("as described, torch", torch.__version__)
PYTHON
