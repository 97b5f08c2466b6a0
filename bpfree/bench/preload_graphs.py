"""What cells on graphs import late, beside `bpfree.bench.preload`: seconds of it, which others are spared."""

import warnings

import filelock  # noqa: F401

from bpfree.data import fold_indices

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch.jit's deprecation
    import torch_geometric.datasets
    import torch_geometric.nn  # noqa: F401

# scikit-learn looks through all installed packages the first time that it is given anything.
fold_indices(10, 0)
