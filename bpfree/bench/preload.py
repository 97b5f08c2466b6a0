"""Late imports of cells; the fork server runs them once, so that a cell starts quickly."""

import pydantic.dataclasses  # noqa: F401
import safetensors.torch  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch._dynamo  # the first step of an optimizer imports it, which takes longer than a small cell trains
import torch.utils.flop_counter  # noqa: F401

from bpfree.bench.environment import git, source_hash

# Cached here: a row names the source that its cell was started from, even if files are edited later.
source_hash()
git()
