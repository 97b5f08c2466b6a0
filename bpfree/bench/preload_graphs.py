"""Late imports of cells on graphs, beside `bpfree.bench.preload`; they take seconds."""

import warnings

import filelock  # noqa: F401

from bpfree.data import fold_indices

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch.jit's deprecation
    import torch_geometric.datasets
    import torch_geometric.nn  # noqa: F401

# scikit-learn scans all installed packages at its first call.
fold_indices(10, 0)
