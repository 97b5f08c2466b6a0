#!/usr/bin/env bash
# torchvision 0.29.1 with Pillow 13.0.0: transforms.functional.to_tensor on a 16-bit gray image.
# Guess: floats in [0, 1], as for 8-bit images; or the values themselves.
# Behavior: an int16 tensor: values are not scaled, and those from 32768 on become negative, 65535 is -1. A network gets
# wrapped integers if the result is only cast to float. pil_to_tensor keeps the values, as uint16.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 pillow==13.0.0 numpy==2.3.4
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor, to_tensor

image = Image.fromarray(np.array([[0, 1000, 32767, 32768, 65535]], np.uint16))
converted, exact = to_tensor(image), pil_to_tensor(image)
print("to_tensor", converted.dtype, converted.tolist(), "pil_to_tensor", exact.dtype, exact.tolist())
assert converted.dtype is torch.int16
assert converted.tolist() == [[[0, 1000, 32767, -32768, -1]]], converted
assert exact.dtype is torch.uint16 and exact.tolist() == [[[0, 1000, 32767, 32768, 65535]]]
print("as described, torchvision", torchvision.__version__)
PYTHON
