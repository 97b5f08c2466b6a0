#!/usr/bin/env bash
# Pillow 13.0.0: 16-bit and float gray images, as written by microscopes, thermal and depth cameras.
# Guess: convert("RGB") and convert("L") scale 16-bit values to 8 bits.
# Behavior: values are clipped at 255. A 16-bit image of usual exposure turns white, a float image in [0, 1] black; all
# pictures of a folder become equal. torchvision's loader for image folders calls convert("RGB").
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet pillow==13.0.0 numpy==2.3.4
"$folder/env/bin/python" - <<'PYTHON'
import io

import numpy as np
import PIL
from PIL import Image

values = np.array([[0, 200, 1000, 30000, 65535]], np.uint16)
file = io.BytesIO()
Image.fromarray(values).save(file, "PNG")
read = Image.open(file)
print("mode", read.mode, "values", np.asarray(read).tolist())
for mode in ("L", "RGB"):
    converted = np.asarray(read.convert(mode)).reshape(1, 5, -1)[..., 0]
    print(mode, converted.tolist())
    assert converted.tolist() == [[0, 200, 255, 255, 255]], converted
floats = Image.fromarray(np.array([[0.0, 0.25, 0.5, 0.99]], np.float32))
converted = np.asarray(floats.convert("RGB"))[..., 0]
print(floats.mode, "to RGB", converted.tolist())
assert converted.tolist() == [[0, 0, 0, 0]], converted
print("as described, Pillow", PIL.__version__)
PYTHON
