"""Autoencoders, trained by counter-current learning or by backpropagation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree._types import JsonObject
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
        rule: ``counter_current`` (arXiv 2409.19841), or ``backprop`` through the whole network as its
            control.
        lr: Learning rate of both decoders; of the whole network with ``backprop``.
        code_lr: Learning rate of the two stages whose outputs are the codes.
        encoder_lr: Learning rate of the encoder stages before them, in both networks. Default: 0, not
            trained. Their targets are outputs of decoder stages, which contain only the information in the
            code, so that training removes all other information from their outputs.
        shapes: Weight of the normalized maps in the pair losses, see `bpfree.losses.MapPair`.
        decorrelation: Weight of the correlations between the channels of a code. Without it two codes can
            agree with many redundant channels.
    """

    rule: Literal["counter_current", "backprop"] = "counter_current"
    lr: Annotated[float, Gt(0)] = 1e-2
    code_lr: Annotated[float, Ge(0)] = 3e-3
    encoder_lr: Annotated[float, Ge(0)] = 0.0
    shapes: Annotated[float, Ge(0)] = 1.0
    decorrelation: Annotated[float, Ge(0)] = 1.0


class AutoencoderBlock(JointBlock):
    """Blocks without gradients between them. The message for the top one is the images, the targets."""

    def inner_feedback(self, outputs: list[Tensor], target: Tensor) -> list[Tensor | None]:
        return send_feedback(self.parts, target)[0]

    def encoders(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """The stages of both networks whose outputs are the codes, and the encoder stages before them."""
        middle = len(self.parts) // 2
        *below, code = [block.body for block in self.parts[:middle]]
        # The feedback stages of the code's pair, and of the pairs above it, are the other network's encoder.
        pairs = [loss for loss in self.losses[middle - 1 :] if isinstance(loss, MapPair)]
        other_code, *other_below = [pair.feedback for pair in pairs]
        return [code, other_code], below + other_below


class Autoencoder(Trainer):
    """Reconstructs images. The network is an `nn.Sequential` of stages, as `bpfree.nn.autoencoder` returns.

    With counter-current learning a second autoencoder processes the clean image in the opposite order of
    blocks, and each stage of one is trained to agree with its counterpart in the other. Labels are not used.
    The metric is the mean squared error.
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
                raise BadValue(
                    "schedule = 'greedy': feedback comes from blocks that are trained; use 'simultaneous' or "
                    "'pipelined'"
                )
            stages = list(self.net.children())
            if not isinstance(self.net, nn.Sequential) or not stages or len(stages) % 2:
                raise BadValue(
                    f"net is a {type(self.net).__name__} of {len(stages)} stages: expected an nn.Sequential "
                    "of as many encoder as decoder stages; use bpfree.nn.autoencoder"
                )
            # The other network has the same stages, in the opposite order of blocks.
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
        encoders = [[p for stage in stages for p in stage.parameters()] for stages in block.encoders()]
        in_encoders = {id(p) for group in encoders for p in group}
        decoders = [p for p in block.trainable() if id(p) not in in_encoders]
        return {
            "block0": make_optimizer(decoders, self.settings, other_groups=zip(encoders, rates, strict=True))
        }

    @property
    def locality(self) -> str:
        return "L0" if self.settings.rule == "backprop" else level_of(list(self.net.children()))

    def predict(self, x: object) -> Tensor:
        """Not defined: there are no classes.

        Raises:
            BadValue: Always.
        """
        raise BadValue(f"{self.id}: it predicts no classes; call trainer.model(inputs) for reconstructions")

    def evaluate(self, data: object) -> JsonObject:
        """``{"mse": mean squared error of the reconstructions}``."""
        return {"mse": super().evaluate(data)["mse"]}
