"""Cut an ordinary module into the bodies of a cascade; the module keeps working and shares its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules import pooling

from bpfree._errors import BadValue
from bpfree._settings import did_you_mean
from bpfree._types import JsonMapping
from bpfree.core.block import Block
from bpfree.core.cascade import Cascade
from bpfree.core.readouts import make_readouts
from bpfree.core.sharing import OWN_LOSSES, check_once
from bpfree.encodings.label_overlay import LabelOverlay, Overlay, overlaid_bodies
from bpfree.losses import LocalCrossEntropy, LocalLoss, OnePassLoss, make_loss
from bpfree.nn import LengthNorm, RootMeanSquarePool, RowNorm
from bpfree.nn.weights import weight_matrices

Cut = str | int | Sequence[str]
Unit = tuple[str, nn.Module]
MakeLoss = Callable[[], LocalLoss]
#: What becomes of the network's output layer: the head of the last block; a block of its own above all blocks
#: that have the local loss; or nothing.
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
#: What may stand at a wall and has nothing to learn.
PASSIVE = (*POOLING, nn.Flatten, nn.modules.dropout._DropoutNd, LengthNorm, RowNorm)


def units(model: nn.Module, prefix: str = "") -> Iterator[Unit]:
    """The modules that ``model`` runs one after another, with their names.

    Containers are opened; torchvision's VGG and ResNet get the flattening that their code does between
    children. A module of another kind counts as one unit, and so does a residual block.
    """
    if isinstance(model, nn.Sequential):
        # `named_children` would leave out a module that occurs a second time.
        for name, child in model._modules.items():
            if child is not None:
                yield from units(child, f"{prefix}{name}.")
    elif type(model).__name__ in ("VGG", "ResNet") and type(model).__module__.startswith("torchvision."):
        flatten_before = "classifier" if type(model).__name__ == "VGG" else "fc"
        for name, child in model.named_children():
            if name == flatten_before:
                yield f"{prefix}flatten", nn.Flatten()
            yield from units(child, f"{prefix}{name}.")
    else:
        yield prefix.rstrip("."), model


def _weighty(module: nn.Module) -> bool:
    return any(True for _ in weight_matrices(module))


def _lead(named: Sequence[Unit], weights: int) -> int:
    """Where the passive layers begin that stand right in front of ``weights``."""
    while weights > 0 and isinstance(named[weights - 1][1], PASSIVE):
        weights -= 1
    return weights


def _starts(named: Sequence[Unit], cut: Cut) -> list[int]:
    """Where blocks begin; whatever stands before the first weights belongs to the first block."""
    weights = [i for i, (_, module) in enumerate(named) if _weighty(module)]
    if cut == "weight":
        return weights
    if cut == "activation":
        return [_lead(named, i) for i in weights]
    if cut in ("conv", "linear"):
        kind = nn.modules.conv._ConvNd if cut == "conv" else nn.Linear
        at = [i for i in weights if any(isinstance(m, kind) for m in named[i][1].modules())]
        if not at:
            raise BadValue(f"cut = {cut!r}: there is no such layer before the output layer; try 'weight'")
        return sorted({weights[0], *at})
    if cut == "pool":
        after = [i + 1 for i, (_, module) in enumerate(named) if isinstance(module, POOLING)]
        if not after:
            raise BadValue("cut = 'pool': there is no pooling before the output layer; try 'weight'")
        behind = (min((w for w in weights if w >= i), default=weights[0]) for i in after)
        return sorted({weights[0], *behind})
    if isinstance(cut, int):
        if not 1 <= cut <= len(weights):
            raise BadValue(f"cut = {cut}: expected 1 to {len(weights)} blocks")
        return [weights[i * len(weights) // cut] for i in range(cut)]
    if isinstance(cut, str):
        raise BadValue(
            f"cut = {cut!r}: unknown; allowed: weight, activation, conv, linear, pool, a number, or a list "
            "of names"
        )
    names = [name for name, _ in named]
    for name in cut:
        if name not in names:
            raise BadValue(f"cut at {name!r}: no such module; {did_you_mean(name, names)}")
    return sorted({weights[0], *(names.index(name) for name in cut)})


def split(model: nn.Module, cut: Cut = "weight") -> tuple[list[nn.Sequential], nn.Module]:
    """The stages of a network and its output layer.

    Args:
        model: Any module that runs its children in order, and torchvision's VGG and ResNet.
        cut: Where blocks begin: ``"weight"``, at each module with a weight matrix or kernel (a convolution, a
            linear layer, a residual block; not one that only scales, as normalization and PReLU do);
            ``"activation"``, the same, but pooling, dropout and normalisation without weights stay with the
            weights that follow them, so that a block ends behind its activation; ``"conv"`` or
            ``"linear"``, at those that hold a convolution or a linear layer alone; ``"pool"``, behind each
            pooling; a number of blocks; or module names.

    Returns:
        The stages, bottom first, and what makes the class scores of the last stage's output.

    Raises:
        BadValue: If the model has fewer than two layers with weights, or ``cut`` does not fit it.
    """
    named = list(units(model))
    weights = [i for i, (_, module) in enumerate(named) if _weighty(module)]
    if len(weights) < 2:
        raise BadValue(
            f"{type(model).__name__} has {len(weights)} layers with weights that can be told apart; a "
            "cascade needs at least one and an output layer: pass an nn.Sequential, or torchvision's VGG "
            "or ResNet"
        )
    body, output = named[: weights[-1]], named[weights[-1] :]
    starts = [0, *_starts(body, cut)[1:]]
    ends = [*starts[1:], len(body)]
    for a, b in zip(starts, ends, strict=True):
        if not any(_weighty(module) for _, module in body[a:b]):
            raise BadValue(f"cut = {cut!r}: the block from {body[a][0]!r} on would have no weights")
    stages = [nn.Sequential(*(m for _, m in body[a:b])) for a, b in zip(starts, ends, strict=True)]
    return stages, output[0][1] if len(output) == 1 else nn.Sequential(*(m for _, m in output))


def localize(
    model: nn.Module,
    loss: str | MakeLoss = "mono_forward",
    cut: Cut = "weight",
    readout: str = "last",
    options: JsonMapping | None = None,
    output: Output = "joined",
    overlay: Overlay = "auto",
) -> Cascade:
    """Cut ``model`` into a cascade of local blocks that share its parameters.

    The model's output layer becomes the head of the last block, so that training the cascade trains the
    model, which stays an ordinary module: ``state_dict``, ``torch.export``, ``torch.compile``. With a loss
    that learns from right and wrong labels, or that solves in one pass (then all bodies stay as they are),
    every block has it, and the output layer takes no part.

    Args:
        model: Any module that runs its children in order, and torchvision's VGG and ResNet.
        loss: The local loss of all blocks but the last: a name, see `bpfree.losses.loss_names`, or what makes
            one, such as its class.
        cut: Where blocks begin, see `split`.
        readout: The prediction rule, see `bpfree.core.readouts.ReadoutName`; a trainer's setting comes first.
        options: Options of a loss that is named.
        output: What becomes of the output layer: ``"joined"``, as above; ``"apart"``, every block has the
            loss, and the output layer learns above them by cross-entropy, a block of its own; ``"none"``,
            every block has the loss, and prediction is by the blocks' own scores.
        overlay: Where a loss that learns from right and wrong labels is shown them, see
            `bpfree.encodings.base.Overlay`.

    Raises:
        BadValue: If the loss or one of its options is unknown, or the cut does not fit the model.
    """
    stages, top = split(model, cut)

    def make() -> LocalLoss:
        return make_loss(loss, options) if isinstance(loss, str) else loss()

    losses = [make() for _ in stages]
    check_once("loss", [(f"block {k}", own) for k, own in enumerate(losses, 1)], OWN_LOSSES)
    kind = losses[0]
    if overlay != "auto" and not kind.signed:
        raise BadValue(f"overlay = {overlay!r}: {type(kind).__name__} is shown no labels; leave overlay out")
    if kind.signed or isinstance(kind, OnePassLoss):
        if output == "apart":
            raise BadValue(
                f"output = 'apart': {type(kind).__name__} trains every block without an output layer"
            )
        output = "none"
    above = nn.Sequential()
    if output != "joined" and cut == "activation":
        stages[-1], above = _at_the_boundary(stages[-1])
    if output == "joined":
        losses[-1] = LocalCrossEntropy(top)
    elif output == "apart":
        stages.append(above)
        losses.append(LocalCrossEntropy(top))
    if isinstance(kind, OnePassLoss):
        blocks = [Block(nn.Identity(), own, front=stage) for stage, own in zip(stages, losses, strict=True)]
    else:
        bodies = overlaid_bodies(stages) if kind.signed else stages
        blocks = [Block(body, own) for body, own in zip(bodies, losses, strict=True)]
    source = model if readout == "last" and output != "none" else None
    encoding = LabelOverlay(overlay=overlay) if kind.signed else None
    return Cascade(blocks, make_readouts(readout, losses), encoding, source=source)


def _at_the_boundary(stage: nn.Sequential) -> tuple[nn.Sequential, nn.Sequential]:
    """A stage without the passive layers at its end, and these."""
    end = _lead([("", module) for module in stage], len(stage))
    return stage[:end], stage[end:]


def check_order(model: nn.Module, parts: nn.Module, x: Tensor) -> None:
    """Check that ``parts``, cut from ``model``, compute what it computes on ``x [B, ...]``.

    Raises:
        BadValue: If they do not: the module does not simply run its children in order.
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
            f"{type(model).__name__} does not run its children in order: it cannot be cut this way"
        )
