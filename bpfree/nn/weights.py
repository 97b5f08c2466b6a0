"""Facts that follow from the type of a layer: its weight matrices and the axis of its features."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin

from bpfree._errors import BadValue

#: Normalization layers: their parameters scale and shift, whatever their shape.
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
#: Layers with one weight matrix or kernel, whatever its shape; the weight of ``Linear(1, n)`` is a column.
LAYERS = (nn.Linear, _ConvNd, nn.Bilinear, nn.Embedding, nn.EmbeddingBag)


def weight_matrices(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the name and value of each weight matrix and kernel of ``module``, once for each use of a module.

    A parameter counts if more than one of its dimensions is larger than 1 and it does not belong to a
    normalization layer; vectors, also of shape ``[1, C, 1, 1]``, only scale or shift. For a layer of a type
    in `LAYERS`, at least one parameter counts, and a weight that is computed from several parameters (weight
    normalization) counts once. A module with a true attribute ``extends_layer`` has no matrix of its own: its
    weights are further columns of another layer.

    Raises:
        BadValue: If the module is lazy and has uninitialized parameters.
    """
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        raise BadValue(
            f"{prefix or type(module).__name__}: a lazy layer with uninitialized parameters; run the network "
            "on one batch first"
        )
    if isinstance(module, NORMS) or getattr(module, "extends_layer", False):
        return
    matrices = [
        (f"{prefix}{name}", p) for name, p in module._parameters.items() if p is not None and _is_matrix(p)
    ]
    for name, child in module._modules.items():
        if child is not None:
            matrices += weight_matrices(child, f"{prefix}{name}.")
    if isinstance(module, LAYERS) and not matrices:
        parameters = sorted(module.named_parameters(prefix.rstrip(".")), key=lambda item: -item[1].dim())
        matrices = parameters[:1]
    yield from matrices


def _is_matrix(parameter: nn.Parameter) -> bool:
    return sum(size > 1 for size in parameter.shape) > 1


def is_plain(layer: nn.Linear, computed: bool = False) -> bool:
    """Return whether ``layer`` computes ``x W^T + b`` and nothing else.

    The weight and bias of such a layer may be used without calling it.

    A subclass with another ``forward`` is not plain, nor is a layer with hooks, such as weight normalization.

    Args:
        layer: The layer.
        computed: Whether the weight may be computed from other parameters by
            `torch.nn.utils.parametrize`.
    """
    hooked = layer._forward_pre_hooks or layer._forward_hooks
    is_parameter = isinstance(layer._parameters.get("weight"), nn.Parameter)
    return type(layer).forward is nn.Linear.forward and not hooked and (is_parameter or computed)


def detach_computed(module: nn.Module) -> None:
    """Detach the tensor attributes of ``module`` that hooks have computed.

    Tensors with a graph cannot be copied. The hooks compute them anew in the next call.
    """
    for part in module.modules():
        for name, value in list(vars(part).items()):
            if isinstance(value, Tensor) and not value.is_leaf:
                vars(part)[name] = value.detach()


def has_default_init(layer: nn.Linear | _ConvNd) -> bool:
    """Return whether the weights of ``layer`` may come from PyTorch's default initialization.

    It is uniform between -1/sqrt(fan_in) and 1/sqrt(fan_in).
    """
    bound = 1 / math.sqrt(layer.weight[0].numel())
    parameters = [p.detach() for p in (layer.weight, layer.bias) if p is not None]
    if any(p.abs().max() > bound * (1 + 1e-6) for p in parameters):
        return False
    values = layer.weight.detach().double().flatten()
    # The mean square of the uniform distribution is bound^2 / 3; six standard errors are allowed.
    tolerance = 6 * math.sqrt(0.8 / values.numel()) / 3
    return bool((values.square().mean() / bound**2 - 1 / 3).abs() <= tolerance)


def feature_axis(module: nn.Module, output: Tensor) -> int:
    """Return the axis of the features in ``output [rows, ...]`` of ``module``, 1 or -1.

    It is the axis whose size equals the number of features of the last layer of a known type. If both axes
    have this size, or neither, it is the axis on which this type of layer returns its features.
    """
    if output.ndim < 3:
        return 1
    width, axis = None, 1
    for layer in module.modules():
        n_features = _n_features(layer)
        if n_features is not None:
            width, axis = n_features, 1 if isinstance(layer, _ConvNd) else -1
    ends = {end for end in (1, -1) if output.shape[end] == width}
    return axis if len(ends) != 1 else ends.pop()


def _n_features(layer: nn.Module) -> int | None:
    """Return the number of output features of ``layer``; None for a layer of another type."""
    if isinstance(layer, nn.RNNBase):
        return (layer.proj_size or layer.hidden_size) * (1 + layer.bidirectional)
    for name in ("out_channels", "out_features", "embedding_dim", "embed_dim"):
        if isinstance(layer, (*LAYERS, nn.MultiheadAttention)) and hasattr(layer, name):
            return int(getattr(layer, name))
    return None
