"""Cut a module into the bodies of a cascade, which share its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules import pooling

from bpfree._errors import BadValue
from bpfree._settings import did_you_mean
from bpfree.core.block import Block
from bpfree.core.cascade import Cascade
from bpfree.core.readouts import make_readouts
from bpfree.core.sharing import ONE_LOSS_PER_BLOCK, check_once
from bpfree.encodings.label_overlay import LabelOverlay, Overlay, overlaid_bodies
from bpfree.losses import LocalCrossEntropy, LocalLoss, OnePassLoss, make_loss
from bpfree.nn import LengthNorm, RootMeanSquarePool, RowNorm
from bpfree.nn.weights import weight_matrices

Cut = str | int | Sequence[str]
NamedModule = tuple[str, nn.Module]
MakeLoss = Callable[[], LocalLoss]
#: Use of the network's output layer: ``joined``, as the head of the last block; ``apart``, as an additional
#: block above all blocks with the local loss; ``none``, not at all.
Output = Literal["joined", "apart", "none"]

POOLING = (
    pooling._MaxPoolNd,
    pooling._AvgPoolNd,
    pooling._AdaptiveAvgPoolNd,
    pooling._AdaptiveMaxPoolNd,
    pooling._LPPoolNd,
    nn.FractionalMaxPool2d,
    nn.FractionalMaxPool3d,
    RootMeanSquarePool,
)
#: Layers without parameters that can be moved from one side of a block boundary to the other.
PASSIVE = (*POOLING, nn.Flatten, nn.modules.dropout._DropoutNd, LengthNorm, RowNorm)


def ordered_modules(model: nn.Module, prefix: str = "") -> Iterator[NamedModule]:
    """Yield the modules that ``model`` calls one after another, with their names.

    The children of `nn.Sequential` are yielded one by one. For torchvision's VGG and ResNet, the flattening
    in their forward method is inserted. A module of another kind, such as a residual block, is yielded whole.
    """
    if isinstance(model, nn.Sequential):
        # `named_children` omits the second occurrence of a module.
        for name, child in model._modules.items():
            if child is not None:
                yield from ordered_modules(child, f"{prefix}{name}.")
    elif type(model).__name__ in ("VGG", "ResNet") and type(model).__module__.startswith("torchvision."):
        flatten_before = "classifier" if type(model).__name__ == "VGG" else "fc"
        for name, child in model.named_children():
            if name == flatten_before:
                yield f"{prefix}flatten", nn.Flatten()
            yield from ordered_modules(child, f"{prefix}{name}.")
    else:
        yield prefix.rstrip("."), model


def _has_weights(module: nn.Module) -> bool:
    """Whether the module has a weight matrix or kernel."""
    return any(True for _ in weight_matrices(module))


def _first_passive(named: Sequence[NamedModule], index: int) -> int:
    """Return the index of the first passive layer directly before ``index``, or ``index``."""
    while index > 0 and isinstance(named[index - 1][1], PASSIVE):
        index -= 1
    return index


def _starts(named: Sequence[NamedModule], cut: Cut) -> list[int]:
    """Return the indices at which blocks begin. The first is that of the first layer with weights.

    Raises:
        BadValue: If ``cut`` is unknown, or does not fit the modules.
    """
    weights = [i for i, (_, module) in enumerate(named) if _has_weights(module)]
    if cut == "weight":
        return weights
    if cut == "activation":
        return [_first_passive(named, i) for i in weights]
    if cut in ("conv", "linear"):
        kind = nn.modules.conv._ConvNd if cut == "conv" else nn.Linear
        starts = [i for i in weights if any(isinstance(m, kind) for m in named[i][1].modules())]
        if not starts:
            raise BadValue(f"cut = {cut!r}: there is no such layer before the output layer; try 'weight'")
        return sorted({weights[0], *starts})
    if cut == "pool":
        after = [i + 1 for i, (_, module) in enumerate(named) if isinstance(module, POOLING)]
        if not after:
            raise BadValue("cut = 'pool': there is no pooling before the output layer; try 'weight'")
        next_weights = (min((w for w in weights if w >= i), default=weights[0]) for i in after)
        return sorted({weights[0], *next_weights})
    if isinstance(cut, int):
        if not 1 <= cut <= len(weights):
            raise BadValue(f"cut = {cut}: expected 1 to {len(weights)} blocks")
        return [weights[i * len(weights) // cut] for i in range(cut)]
    if isinstance(cut, str):
        raise BadValue(
            f"cut = {cut!r}: unknown; expected weight, activation, conv, linear, pool, a number, or a list "
            "of module names"
        )
    names = [name for name, _ in named]
    for name in cut:
        if name not in names:
            raise BadValue(f"cut at {name!r}: no such module; {did_you_mean(name, names)}")
    return sorted({weights[0], *(names.index(name) for name in cut)})


def split(model: nn.Module, cut: Cut = "weight") -> tuple[list[nn.Sequential], nn.Module]:
    """Cut a network into stages and an output layer.

    Args:
        model: A module that calls its children in order, or torchvision's VGG or ResNet.
        cut: Where stages begin. ``"weight"``: at each module with a weight matrix or kernel (a convolution, a
            linear layer, a residual block, but not normalization and PReLU, which only scale).
            ``"activation"``: the same, but pooling, dropout and normalization without weights belong to the
            stage after them, so that a stage ends with its activation. ``"conv"`` or ``"linear"``: only at
            modules that contain a convolution or a linear layer. ``"pool"``: after each pooling. A number:
            the number of stages. Or a list of module names.

    Returns:
        The stages, bottom first, and the output layer.

    Raises:
        BadValue: If the model has fewer than two layers with weights, or ``cut`` does not fit it.
    """
    named = list(ordered_modules(model))
    weights = [i for i, (_, module) in enumerate(named) if _has_weights(module)]
    if len(weights) < 2:
        raise BadValue(
            f"{type(model).__name__} has {len(weights)} layers with weights in a known order; a cascade "
            "needs at least one and an output layer: pass an nn.Sequential, or torchvision's VGG or ResNet"
        )
    body, output = named[: weights[-1]], named[weights[-1] :]
    starts = [0, *_starts(body, cut)[1:]]
    ends = [*starts[1:], len(body)]
    for a, b in zip(starts, ends, strict=True):
        if not any(_has_weights(module) for _, module in body[a:b]):
            raise BadValue(
                f"cut = {cut!r}: the block that begins at {body[a][0]!r} has no weights; omit this name"
            )
    stages = [nn.Sequential(*(m for _, m in body[a:b])) for a, b in zip(starts, ends, strict=True)]
    return stages, output[0][1] if len(output) == 1 else nn.Sequential(*(m for _, m in output))


def localize(
    model: nn.Module,
    loss: str | MakeLoss = "mono_forward",
    cut: Cut = "weight",
    readout: str = "last",
    options: Mapping[str, object] | None = None,
    output: Output = "joined",
    overlay: Overlay = "auto",
) -> Cascade:
    """Cut ``model`` into a cascade of local blocks that share its parameters.

    The model's output layer becomes the head of the last block, so that training the cascade trains the
    model. The model does not change otherwise: its ``state_dict``, ``torch.export`` and ``torch.compile``
    work as before. If the loss is trained on positive and negative samples, or is solved in one pass (then
    the bodies are not trained), all blocks have this loss, and the output layer is not used.

    Args:
        model: A module that calls its children in order, or torchvision's VGG or ResNet.
        loss: The local loss of all blocks but the last: a name, see `bpfree.losses.loss_names`, or a function
            that returns a new loss, such as a class.
        cut: Where blocks begin, see `split`.
        readout: The readout that computes predictions, see `bpfree.core.readouts.ReadoutName`. A trainer's
            setting has precedence.
        options: Options of the loss, if ``loss`` is a name.
        output: Use of the output layer. ``"joined"``: the head of the last block, as above. ``"apart"``: all
            blocks have the loss, and the output layer is an additional block that is trained by
            cross-entropy. ``"none"``: all blocks have the loss, and predictions use the scores of the blocks.
        overlay: Position of the label code, for a loss with positive and negative samples, see
            `bpfree.encodings.label_overlay.Overlay`.

    Raises:
        BadValue: If the loss or one of its options is unknown; if ``cut``, ``output`` or ``overlay`` does
            not fit the model or the loss.
    """
    stages, output_layer = split(model, cut)

    def make() -> LocalLoss:
        return make_loss(loss, options) if isinstance(loss, str) else loss()

    losses = [make() for _ in stages]
    check_once("loss", [(f"block {k}", made) for k, made in enumerate(losses, 1)], ONE_LOSS_PER_BLOCK)
    first = losses[0]
    name = type(first).__name__
    if overlay != "auto" and not first.signed:
        raise BadValue(f"overlay = {overlay!r}: {name} uses no label codes; omit overlay")
    if first.signed or isinstance(first, OnePassLoss):
        if output == "apart":
            raise BadValue(
                f"output = 'apart': {name} is used in all blocks, without an output layer; omit output"
            )
        output = "none"
    passive = nn.Sequential()
    if output != "joined" and cut == "activation":
        stages[-1], passive = _split_passive(stages[-1])
    if output == "joined":
        losses[-1] = LocalCrossEntropy(output_layer)
    elif output == "apart":
        stages.append(passive)
        losses.append(LocalCrossEntropy(output_layer))
    if isinstance(first, OnePassLoss):
        blocks = [Block(nn.Identity(), made, front=stage) for stage, made in zip(stages, losses, strict=True)]
    else:
        bodies = overlaid_bodies(stages) if first.signed else stages
        blocks = [Block(body, made) for body, made in zip(bodies, losses, strict=True)]
    source = model if readout == "last" and output != "none" else None
    encoding = LabelOverlay(overlay=overlay) if first.signed else None
    return Cascade(blocks, make_readouts(readout, losses), encoding, source=source)


def _split_passive(stage: nn.Sequential) -> tuple[nn.Sequential, nn.Sequential]:
    """Split a stage into two: the passive layers at its end, and those before."""
    end = _first_passive([("", module) for module in stage], len(stage))
    return stage[:end], stage[end:]


def check_order(model: nn.Module, parts: nn.Module, x: Tensor) -> None:
    """Check that ``parts``, which were cut from ``model``, have the same output for ``x [B, ...]``.

    Raises:
        BadValue: If the outputs differ, because the model does not call its children in order.
    """
    modes = {module: module.training for module in [*model.modules(), *parts.modules()]}
    model.eval()
    parts.eval()
    with torch.no_grad():
        same = torch.allclose(model(x), parts(x), rtol=1e-4, atol=1e-5, equal_nan=True)
    for module, mode in modes.items():
        module.training = mode
    if not same:
        raise BadValue(
            f"{type(model).__name__} does not call its children in order, so it cannot be cut into blocks: "
            "pass an nn.Sequential with the same output"
        )
