"""Autoencoders, by counter-current learning or by backpropagation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree.core.block import BaseBlock, Block, send_feedback
from bpfree.core.cascade import Cascade
from bpfree.core.joint import JointBlock
from bpfree.core.readouts import BlockReadout
from bpfree.encodings.base import Reconstruct
from bpfree.engine.settings import TrainerSettings, make_optimizer
from bpfree.losses import MapPair, Reconstruction
from bpfree.metrics import MSE
from bpfree.nn.autoencoder import copy_with_new_weights
from bpfree.trainers.base import Trainer, level_of


@dataclass(frozen=True, kw_only=True)
class AutoencoderSettings(TrainerSettings):
    """Settings of `Autoencoder`.

    Attributes:
        rule: ``counter_current`` (arXiv 2409.19841), or ``backprop`` through the whole net as its control.
        lr: Learning rate of both decoders; of the whole net with ``backprop``.
        code_lr: Learning rate of the two stages that give the code.
        encoder_lr: Learning rate of the encoder stages before them, in both networks. Their counterparts are
            decoder stages, which know no more than what the code has kept: to agree with them is to forget
            the rest. 0: as they were drawn.
        shapes: Weight of the pairs' normalised maps, see `bpfree.losses.MapPair`.
        decorrelation: Weight of the correlations between the code's channels. Two codes that only have to
            agree may agree on a few things said many times over.
    """

    rule: Literal["counter_current", "backprop"] = "counter_current"
    lr: Annotated[float, Gt(0)] = 1e-2
    code_lr: Annotated[float, Ge(0)] = 3e-3
    encoder_lr: Annotated[float, Ge(0)] = 0.0
    shapes: Annotated[float, Ge(0)] = 1.0
    decorrelation: Annotated[float, Ge(0)] = 1.0


class AutoencoderBlock(JointBlock):
    """Blocks without gradients between them. The message for the top one is the images to reconstruct."""

    def inner_feedback(self, outputs: list[Tensor], target: Tensor) -> list[Tensor | None]:
        return send_feedback(self.parts, target)[0]

    def encoders(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """The stages of both networks that give the code, and those before them."""
        middle = len(self.parts) // 2
        *below, code = [block.body for block in self.parts[:middle]]
        # The pair of the code, and all above it, are answered on the way from the image to the other code.
        pairs = [loss for loss in self.losses[middle - 1 :] if isinstance(loss, MapPair)]
        other, *after = [pair.feedback for pair in pairs]
        return [code, other], below + after


class Autoencoder(Trainer):
    """Reconstructs images; the net is an `nn.Sequential` of stages, as `bpfree.nn.autoencoder` makes it.

    Counter-current: a second autoencoder is run from the clean image back to the code and beyond, and each
    stage of one learns to agree with the same stage of the other. Labels take no part; the metric is
    the mean squared error.
    """

    id = "autoencoder"
    Settings = AutoencoderSettings
    settings: AutoencoderSettings
    metric = MSE

    def make_cascade(self, n_classes: int) -> Cascade:
        if self.settings.rule == "backprop":
            blocks: list[BaseBlock] = [Block(self.net, Reconstruction())]
        else:
            if self.settings.schedule == "greedy":
                raise BadValue("schedule = 'greedy': messages need 'simultaneous' or 'pipelined'")
            stages = list(self.net.children())
            if not isinstance(self.net, nn.Sequential) or not stages or len(stages) % 2:
                raise BadValue(
                    "an autoencoder to be cut must be an nn.Sequential of as many encoder as decoder stages"
                )
            # The other network has the same stages, and meets this one's in the opposite order.
            pairs = [MapPair(copy_with_new_weights(stage), self.settings.shapes) for stage in stages[-2::-1]]
            pairs[len(stages) // 2 - 1].decorrelation = self.settings.decorrelation
            losses = [*pairs, Reconstruction(weight=None)]
            inner = [Block(stage, loss) for stage, loss in zip(stages, losses, strict=True)]
            blocks = [AutoencoderBlock(inner, [1.0] * len(inner), detach=True)]
        return Cascade(blocks, {"last": BlockReadout()}, encoding=Reconstruct(), source=self.net)

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        (block,) = self.cascade.units
        if not isinstance(block, AutoencoderBlock):
            return super().make_optimizers()
        rates = (self.settings.code_lr, self.settings.encoder_lr)
        apart = [[p for stage in stages for p in stage.parameters()] for stages in block.encoders()]
        encoding = {id(p) for group in apart for p in group}
        rest = [p for p in block.trainable() if id(p) not in encoding]
        return {"block0": make_optimizer(rest, self.settings, apart=zip(apart, rates, strict=True))}

    @property
    def locality(self) -> str:
        return "L0" if self.settings.rule == "backprop" else level_of(list(self.net.children()))

    def predict(self, x: Any) -> Tensor:
        """Not there.

        Raises:
            BadValue: Always.
        """
        raise BadValue(f"{self.id}: it predicts no classes; its reconstructions are trainer.model(inputs)")

    def evaluate(self, data: Any) -> dict[str, Any]:
        """``{"mse": mean squared error of the reconstructions}``."""
        return {"mse": super().evaluate(data)["mse"]}
