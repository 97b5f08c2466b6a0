#!/usr/bin/env bash
# safetensors 0.8.0 with torch 2.13.0.
# Guess: the loaded tensors equal the saved ones.
# Behavior: a tensor with a lazy conjugation or negation (`x.conj()`, and the imaginary part of one) is saved as the
# bytes of its memory: the loaded tensor has the other sign. `contiguous()` does not help, as such a tensor counts as
# contiguous; `resolve_conj().resolve_neg()` does. No error is raised.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.3.4 safetensors==0.8.0 packaging==25.0
"$folder/env/bin/python" - <<'PYTHON'
import safetensors
import torch
from safetensors.torch import load, save

conjugated = torch.tensor([1 + 2j]).conj()
negated = torch.tensor([1 + 2j]).conj().imag
saved = {"conjugated": conjugated.contiguous(), "negated": negated.contiguous(),
         "resolved": conjugated.resolve_conj()}
loaded = load(save(saved))
print({name: (saved[name].tolist(), loaded[name].tolist()) for name in saved})
assert saved["conjugated"].tolist() == [1 - 2j] and loaded["conjugated"].tolist() == [1 + 2j]
assert saved["negated"].tolist() == [-2.0] and loaded["negated"].tolist() == [2.0]
assert loaded["resolved"].tolist() == [1 - 2j]
print("as described, safetensors", safetensors.__version__, "torch", torch.__version__)
PYTHON
