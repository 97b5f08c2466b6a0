"""What cells on graphs import late, beside `bpfree.bench.preload`: seconds of it, which others are spared."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch.jit's deprecation
    import torch_geometric.nn  # noqa: F401
