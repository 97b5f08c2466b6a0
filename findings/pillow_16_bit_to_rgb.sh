#!/usr/bin/env bash
# Pillow 13.0.0: 16-bit and float grey images, as microscopes, thermal and depth cameras write them.
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
    found = np.asarray(read.convert(mode)).reshape(1, 5, -1)[..., 0]
    print(mode, found.tolist())
    assert found.tolist() == [[0, 200, 255, 255, 255]], found
floats = Image.fromarray(np.array([[0.0, 0.25, 0.5, 0.99]], np.float32))
found = np.asarray(floats.convert("RGB"))[..., 0]
print(floats.mode, "to RGB", found.tolist())
assert found.tolist() == [[0, 0, 0, 0]], found
print("seen as described, Pillow", PIL.__version__)
PYTHON
