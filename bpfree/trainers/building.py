"""What a trainer does before it trains: a network becomes a cascade, with its optimizers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import nn

from bpfree import _seeds
from bpfree._errors import BadValue
from bpfree._settings import validate
from bpfree.cascade import Block, Cascade
from bpfree.cutting import check_order, split
from bpfree.nn import asking
from bpfree.nn.weights import weight_matrices
from bpfree.sharing import check_weights, walled
from bpfree.trainers.inputs import accepting, find_device, probe_samples
from bpfree.trainers.optimizers import make_optimizers
from bpfree.trainers.settings import TrainerSettings
from bpfree.trainers.space import STEPS, Space

#: What the locality levels mean; `bpfree.testing.assert_locality` proves the level that a trainer declares.
LEVELS = {
    "L0": "a global backward pass",
    "L1": "no gradient crosses a block",
    "L2": "no gradient crosses a weight layer",
    "L3": "no autograd at all",
}


class Builder(ABC):
    """Makes a cascade of a network, as its family says; see `bpfree.Trainer`."""

    id: ClassVar[str]
    Settings: ClassVar[type[TrainerSettings]] = TrainerSettings
    #: What `python -m bpfree.tune` may search; a config may narrow it.
    space: ClassVar[Space] = STEPS

    def __init__(
        self,
        net: nn.Module,
        *,
        seed: int = 0,
        device: str | torch.device | None = None,
        progress: bool = True,
        **settings: Any,
    ) -> None:
        self.settings = validate(self.Settings, settings, self.id)
        if not isinstance(net, nn.Module):
            raise BadValue(f"net is a {type(net).__name__}: expected a torch.nn.Module")
        if not isinstance(seed, int):
            raise BadValue(f"seed = {seed!r}: expected an integer")
        self.seed, self.progress = seed, progress
        found = next((p.device for p in net.parameters()), torch.device("cpu"))
        self.device = find_device(device) if device is not None else found
        self.net = net.to(self.device)
        self.n_classes: int | None = None
        self._shape: tuple[int, ...] = ()
        self._cascade: Cascade | None = None
        self.optimizers: dict[str, torch.optim.Optimizer] = {}

    @abstractmethod
    def make_cascade(self, n_classes: int) -> Cascade:
        """Make the cascade of `net`: the family's whole definition."""

    @property
    @abstractmethod
    def locality(self) -> str:
        """The declared level, a key of `LEVELS`."""

    # ---- building --------------------------------------------------------------------------------------

    @property
    def cascade(self) -> Cascade:
        """The blocks.

        Raises:
            BadValue: Before `build` or `fit`.
        """
        if self._cascade is None:
            raise BadValue(
                "the trainer has not seen the shape of its data yet: call fit, load or build first"
            )
        return self._cascade

    @property
    def model(self) -> nn.Module:
        """The trained network as an ordinary module: samples ``[B, ...]`` to class scores ``[B, C]``."""
        return self.cascade.to_module()

    def build(self, sample_shape: Sequence[int], n_classes: int) -> None:
        """Make blocks, heads and optimizers for samples of this shape; `fit` does it by itself.

        Raises:
            BadValue: If the network does not accept such samples, or was built for another number of classes.
        """
        if self._cascade is not None:
            if self.n_classes != n_classes:
                raise BadValue(
                    f"the trainer was built for {self.n_classes} classes, the data have {n_classes}"
                )
            self._check_shape(sample_shape)
            return
        x = probe_samples(sample_shape, self.device)
        with _seeds.borrowed(self.device), accepting(sample_shape), asking(self.net, "shape"):
            _seeds.seed_global(self.device, self.seed, "heads")
            if not isinstance(self.net, Cascade):
                stages, output = self.stages(self.settings.cut)
                check_order(self.net, nn.Sequential(*stages, output), x)
            cascade = self.make_cascade(n_classes).to(self.device)
            check_weights(cascade, self.net)
            if self.settings.channels_last:
                cascade.to(memory_format=torch.channels_last)
            cascade.eval().build(x, n_classes)
            if isinstance(self.net, Cascade):
                check_order(self.net.to_module(), self.net, x)
        self._adopt(cascade, n_classes, sample_shape)

    def _adopt(self, cascade: Cascade, n_classes: int, sample_shape: Sequence[int]) -> None:
        self._check_gradients(cascade)
        self._cascade, self.n_classes, self._shape = cascade, n_classes, tuple(sample_shape)
        self.reset_optimizers()
        for block in cascade.units:
            if self.settings.compile is not None:
                block.compile(self.settings.compile)

    @torch.no_grad()
    def _check_shape(self, sample_shape: Sequence[int]) -> None:
        """Check that the built cascade takes samples of another shape than those it was built with."""
        if tuple(sample_shape) == self._shape:
            return
        training = self.cascade.training
        with accepting(sample_shape), asking(self.cascade, "shape"):
            self.cascade.eval()(probe_samples(sample_shape, self.device))
        self.cascade.train(training)

    def _check_gradients(self, cascade: Cascade) -> None:
        s = self.settings
        plain = s.precision == "float32" and s.compile is None
        closed = (b for b in cascade.units if b.gradients == "analytic")
        if not plain and any(not loss.one_pass for block in closed for loss in block.losses):
            raise BadValue(
                f"gradients = {getattr(s, 'gradients', 'analytic')!r} with precision = {s.precision!r} and "
                f"compile = {s.compile!r}: the closed form is computed in float32 and not compiled; leave "
                "precision and compile"
            )

    def reset_optimizers(self) -> None:
        """New optimizers, without momentum.

        Raises:
            BadValue: If blocks share weights, or nothing is left to learn.
        """
        check_weights(self.cascade, self.net)
        self.optimizers = make_optimizers(self.cascade, self.settings)
        for k, block in enumerate(self.cascade.units):
            block.optimizer = self.optimizers[f"block{k}"]

    @contextmanager
    def running(self) -> Iterator[None]:
        """What training, evaluation and prediction run in.

        Inside, everything computes in the precision of the settings; afterwards torch's global generators are
        as they were.
        """
        low = self.settings.precision == "bfloat16"
        # No copies of weights are kept: inside a run they would outlive the step that changes the weights.
        cast = torch.autocast(self.device.type, torch.bfloat16, enabled=low, cache_enabled=False)
        with _seeds.borrowed(self.device), cast:
            yield

    def stages(self, cut: Any = "weight") -> tuple[list[nn.Sequential], nn.Module]:
        """The net's stages and its output layer; a cascade that was cut already keeps its cut."""
        if isinstance(self.net, Cascade):
            raise BadValue(f"{self.id} cuts the network itself: pass the module, not a cascade")
        return split(self.net, cut)


def keep_maps(stages: list[nn.Sequential], output: nn.Module) -> tuple[list[nn.Sequential], nn.Module]:
    """Move a flattening at the end of the last stage to the output layer, so that every stage gives maps."""
    *below, last = stages
    if len(last) > 1 and isinstance(last[-1], nn.Flatten):
        return [*below, last[:-1]], nn.Sequential(last[-1], output)
    return stages, output


def bodies(blocks: Sequence[Block]) -> list[nn.Module]:
    """The bodies between which no gradient passes, bottom first."""
    return [nn.ModuleList(block.body for block in group) for _, group in walled(blocks)]


def level_of(bodies: Sequence[nn.Module], best: str = "L2") -> str:
    """The level of locality of blocks with these bodies, a key of `LEVELS`.

    L0 if the top body holds every parameter that a body learns: then the one loss reaches all of them, as in
    backpropagation. At most L1 if a body that learns has more than one weight matrix or kernel.

    Args:
        bodies: Bottom first; those of blocks with fixed bodies have nothing to learn.
        best: The level otherwise.
    """
    learning = [any(p.requires_grad for p in body.parameters()) for body in bodies]
    if learning[-1] and not any(learning[:-1]):
        return "L0"
    counts = (len(list(weight_matrices(body))) for body, learns in zip(bodies, learning, strict=True) if learns)
    return best if max(counts, default=0) <= 1 else min(best, "L1")
