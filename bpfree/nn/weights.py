"""Which parameters of a module are weight matrices or kernels, and which only scale or shift its input."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin

from bpfree._errors import BadValue

#: Layers whose parameters scale and shift, whatever their shape.
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
#: Layers with one weight matrix or kernel, whatever its shape: that of ``Linear(1, n)`` is a column.
LAYERS = (nn.Linear, _ConvNd, nn.Bilinear, nn.Embedding, nn.EmbeddingBag)


def weight_matrices(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Parameter]]:
    """The weight matrices and kernels that ``module`` applies, with their names, once for each use of a module.

    A parameter counts if more than one of its axes is longer than 1, and it does not belong to a
    normalization layer: vectors (also those shaped ``[1, C, 1, 1]``) only scale or shift. Of a layer of the
    kinds in `LAYERS` at least one parameter counts, and the factors of a weight that is computed (weight
    normalization) count once.

    Raises:
        BadValue: If the size of a layer is not known yet (a lazy module).
    """
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        raise BadValue(
            f"{prefix or type(module).__name__}: a lazy layer whose size is not known yet; run the network on "
            "one batch first"
        )
    if isinstance(module, NORMS):
        return
    found = [(f"{prefix}{name}", p) for name, p in module._parameters.items() if p is not None and _wide(p)]
    for name, child in module._modules.items():
        if child is not None:
            found += weight_matrices(child, f"{prefix}{name}.")
    if isinstance(module, LAYERS) and not found:
        own = sorted(module.named_parameters(prefix.rstrip(".")), key=lambda item: -item[1].dim())
        found = own[:1]
    yield from found


def _wide(parameter: nn.Parameter) -> bool:
    return sum(size > 1 for size in parameter.shape) > 1


def is_plain(layer: nn.Linear, computed: bool = False) -> bool:
    """Whether ``layer`` does nothing but ``x W^T + b``, so that code may use its tensors without calling it.

    Args:
        layer: The layer; subclasses may do more, and so may hooks, as those of weight normalization do.
        computed: Whether its weight may be computed from other parameters by
            `torch.nn.utils.parametrize`.
    """
    hooked = layer._forward_pre_hooks or layer._forward_hooks
    own = isinstance(layer._parameters.get("weight"), nn.Parameter)
    return type(layer).forward is nn.Linear.forward and not hooked and (own or computed)
