"""Imports that cells need late; the fork server makes them once, so that starting a cell is cheap."""

import warnings

import pydantic.dataclasses  # noqa: F401
import safetensors.torch  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch.utils.flop_counter  # noqa: F401

from bpfree.bench.environment import git, source_hash

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch.jit's deprecation
    import torch_geometric.nn  # noqa: F401

# Remembered from here on: a row names the source that its cell was started from, whatever is edited later.
source_hash()
git()
