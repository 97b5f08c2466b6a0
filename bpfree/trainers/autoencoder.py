"""Autoencoders, by counter-current learning or by backpropagation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree.cascade import Block, Cascade, JointBlock, descend
from bpfree.encodings import Reconstruct
from bpfree.losses import LocalLoss, MapPair, Reconstruction
from bpfree.readouts import BlockReadout
from bpfree.trainers.base import Trainer
from bpfree.trainers.settings import TrainerSettings, make_optimizer


@dataclass(frozen=True, kw_only=True)
class AutoencoderSettings(TrainerSettings):
    """Settings of `Autoencoder`.

    Attributes:
        rule: ``counter_current`` (arXiv 2409.19841), or ``backprop`` through the whole net as its control.
        lr: Learning rate of both decoders.
        encoder_lr: Learning rate of both encoders, that of the net and that of the feedback network; None: as
            ``lr``. At the same pace a stage and its answer agree on maps that say little of the image.
    """

    rule: Literal["counter_current", "backprop"] = "counter_current"
    lr: Annotated[float, Gt(0)] = 3e-3
    encoder_lr: Annotated[float, Ge(0)] | None = 1e-4


class AutoencoderBlock(JointBlock):
    """Blocks with closed walls, of which the top one hears the images that are to be reconstructed."""

    def lessons(self, outputs: list[Tensor], target: Tensor) -> list[Tensor | None]:
        return descend(self.inner, target)

    def encoders(self) -> list[nn.Module]:
        """The stages of both networks that lead from an image to its code."""
        stages = [block.body for block in self.inner]
        stages += [loss.feedback for loss in self.losses if isinstance(loss, MapPair)]
        return [stage for stage in stages if not any(isinstance(m, nn.Upsample) for m in stage.modules())]


class Autoencoder(Trainer):
    """Reconstructs images; the net is an `nn.Sequential` of stages, as `bpfree.nn.autoencoder` makes it.

    Counter-current: a second autoencoder is run from the clean image back to the code and beyond, and each
    stage of one learns to agree with the same stage of the other. Labels take no part; accuracy in a history
    is the negative mean squared error, so that higher is better.
    """

    id = "autoencoder"
    Settings = AutoencoderSettings
    settings: AutoencoderSettings

    def make_cascade(self, n_classes: int) -> Cascade:
        if self.settings.rule == "backprop":
            blocks: list[Block] = [Block(self.net, Reconstruction())]
        else:
            if self.settings.schedule != "simultaneous":
                raise BadValue(f"schedule = {self.settings.schedule!r}: messages need 'simultaneous'")
            stages = list(self.net.children())
            if not isinstance(self.net, nn.Sequential) or len(stages) < 2:
                raise BadValue("an autoencoder to be cut must be an nn.Sequential of two stages or more")
            losses: list[LocalLoss] = [MapPair(above) for above in stages[1:]]
            losses.append(Reconstruction(weight=None))
            inner = [Block(stage, loss) for stage, loss in zip(stages, losses, strict=True)]
            blocks = [AutoencoderBlock(inner, [1.0] * len(inner), detach=True)]
        return Cascade(blocks, {"last": BlockReadout()}, encoding=Reconstruct(), source=self.net)

    def reset_optimizers(self) -> None:
        super().reset_optimizers()
        (block,) = self.cascade.units
        lr = self.settings.encoder_lr
        if lr is None or not isinstance(block, AutoencoderBlock):
            return
        slow = [p for stage in block.encoders() for p in stage.parameters()]
        apart = {id(p) for p in slow}
        optimizer = make_optimizer([p for p in block.trainable() if id(p) not in apart], self.settings)
        optimizer.add_param_group({"params": slow, "lr": lr})
        self.optimizers["block0"] = block.optimizer = optimizer

    @property
    def locality(self) -> str:
        return "L0" if self.settings.rule == "backprop" else "L2"

    def evaluate(self, data: Any) -> dict[str, Any]:
        """``{"mse": mean squared error of the reconstructions}``."""
        return {"mse": -super().evaluate(data)["accuracy"]}
