"""Imports that cells need late; the fork server makes them once, so that starting a cell is cheap."""

import pydantic.dataclasses  # noqa: F401
import safetensors.torch  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch._dynamo  # an optimizer's first step would import it, for longer than a small cell trains
import torch.utils.flop_counter  # noqa: F401

from bpfree.bench.environment import git, source_hash

# Remembered from here on: a row names the source that its cell was started from, whatever is edited later.
source_hash()
git()
