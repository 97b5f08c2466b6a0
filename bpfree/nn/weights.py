"""What the kind of a layer determines: its weight matrices or kernels, and where its features are."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin

from bpfree._errors import BadValue

#: Layers whose parameters scale and shift, whatever their shape.
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
#: Layers with one weight matrix or kernel, whatever its shape: that of ``Linear(1, n)`` is a column.
LAYERS = (nn.Linear, _ConvNd, nn.Bilinear, nn.Embedding, nn.EmbeddingBag)


def weight_matrices(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Parameter]]:
    """The weight matrices and kernels of ``module`` with their names, once for each use of a module.

    A parameter counts if more than one of its axes is longer than 1, and it does not belong to a
    normalization layer: vectors (also those shaped ``[1, C, 1, 1]``) only scale or shift. Of a layer of the
    kinds in `LAYERS` at least one parameter counts, and the factors of a weight that is computed (weight
    normalization) count once. Nothing counts of a module with ``extends_layer``, whose weights are further
    columns of the layer beside it.

    Raises:
        BadValue: If the size of a layer is not known yet (a lazy module).
    """
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        raise BadValue(
            f"{prefix or type(module).__name__}: a lazy layer whose size is not known yet; run the network "
            "on one batch first"
        )
    if isinstance(module, NORMS) or getattr(module, "extends_layer", False):
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


def detach_computed(module: nn.Module) -> None:
    """Detach the tensors that hooks have computed and left in ``module``: a graph cannot be copied.

    They are computed anew at the next call.
    """
    for part in module.modules():
        for name, value in list(vars(part).items()):
            if isinstance(value, Tensor) and not value.is_leaf:
                vars(part)[name] = value.detach()


def is_fresh(layer: nn.Linear | _ConvNd) -> bool:
    """Whether the weights of ``layer`` may be those that torch drew: uniform, up to 1/sqrt(fan in)."""
    bound = 1 / math.sqrt(layer.weight[0].numel())
    drawn = [p.detach() for p in (layer.weight, layer.bias) if p is not None]
    if any(p.abs().max() > bound * (1 + 1e-6) for p in drawn):
        return False
    values = layer.weight.detach().double().flatten()
    # Six standard errors of the mean square of a uniform distribution: a third of the bound's square.
    allowed = 6 * math.sqrt(0.8 / values.numel()) / 3
    return bool((values.square().mean() / bound**2 - 1 / 3).abs() <= allowed)


def feature_axis(module: nn.Module, output: Tensor) -> int:
    """Which axis of ``output [rows, ...]`` of ``module`` holds its features, 1 or -1.

    It is the axis that is as long as the last layer of known kind is wide; of two such axes, the one that
    this kind of layer gives its features on.
    """
    if output.ndim < 3:
        return 1
    width, axis = None, 1
    for layer in module.modules():
        found = _width(layer)
        if found is not None:
            width, axis = found, 1 if isinstance(layer, _ConvNd) else -1
    ends = {end for end in (1, -1) if output.shape[end] == width}
    return axis if len(ends) != 1 else ends.pop()


def _width(layer: nn.Module) -> int | None:
    """How many features ``layer`` gives; None if it is of another kind."""
    if isinstance(layer, nn.RNNBase):
        return (layer.proj_size or layer.hidden_size) * (1 + layer.bidirectional)
    for name in ("out_channels", "out_features", "embedding_dim", "embed_dim"):
        if isinstance(layer, (*LAYERS, nn.MultiheadAttention)) and hasattr(layer, name):
            return int(getattr(layer, name))
    return None
