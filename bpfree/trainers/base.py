"""`Trainer`: fit, evaluate, predict, save, load. A family is a thin subclass that makes a cascade."""

from __future__ import annotations

import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bpfree import _seeds
from bpfree._errors import BadValue
from bpfree._settings import validate
from bpfree.cascade import Block, Cascade
from bpfree.cutting import check_order, split
from bpfree.data import TensorData
from bpfree.schedules import step
from bpfree.trainers import checkpoint as ckpt
from bpfree.trainers.evaluation import Evaluator
from bpfree.trainers.fitting import Checkpoint, Fit, Hooks, make_optimizers, update_readout
from bpfree.trainers.history import History
from bpfree.trainers.inputs import accepting, check_batch, check_data, find_device, probe_samples
from bpfree.trainers.progress import progress_bar
from bpfree.trainers.settings import FitSettings, TrainerSettings
from bpfree.trainers.space import STEPS, Space

#: What the locality levels mean; `bpfree.testing.assert_locality` proves the level that a trainer declares.
LEVELS = {
    "L0": "a global backward pass",
    "L1": "no gradient crosses a block",
    "L2": "no gradient crosses a weight layer",
    "L3": "no autograd at all",
}

#: Samples that `Trainer.diagnose` looks at.
PROBE_SAMPLES = 500


class Trainer(ABC):
    """Trains a network by a local rule.

    Args:
        net: A module to be cut into blocks (see `bpfree.localize`), whose last layer is its output layer,
            or a `Cascade` that has been cut already. Its parameters are trained in place.
        seed: Seed of everything random: heads, order of samples, negatives, dropout.
        device: Where to train; by default where the network is.
        progress: Whether to show a progress bar.
        **settings: The fields of `Settings`.

    Raises:
        BadValue: If a setting is unknown or out of range, or the network cannot be cut.
    """

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

    # ---- what a family says ----------------------------------------------------------------------------

    @abstractmethod
    def make_cascade(self, n_classes: int) -> Cascade:
        """Make the cascade of `net`: the family's whole definition."""

    @property
    @abstractmethod
    def locality(self) -> str:
        """The declared level, a key of `LEVELS`."""

    def prepare(
        self,
        train: TensorData,
        validation: TensorData | None,
        fit: FitSettings,
        checkpoint: Checkpoint | None,
        hooks: Hooks,
    ) -> History:
        """What a family does before the blocks of its cascade train, once a run: nothing here.

        Returns:
            What happened, for the beginning of the run's history.
        """
        return History()

    def diagnose(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        """Figures about the blocks, beside accuracy, for the history's rows: nothing here.

        Args:
            x: The first validation samples, ``[B, ...]``.
            y: Their labels, ``[B]``.
        """
        return {}

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
        with _seeds.borrowed(self.device), accepting(sample_shape):
            _seeds.seed_global(self.device, self.seed, "heads")
            if not isinstance(self.net, Cascade):
                stages, output = self.stages(self.settings.cut)
                check_order(self.net, nn.Sequential(*stages, output), x)
            cascade = self.make_cascade(n_classes).to(self.device)
            cascade.eval().build(x, n_classes)
            if isinstance(self.net, Cascade):
                check_order(self.net.to_module(), self.net, x)
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
        with accepting(sample_shape):
            self.cascade.eval()(probe_samples(sample_shape, self.device))
        self.cascade.train(training)

    def _check_gradients(self, cascade: Cascade) -> None:
        s = self.settings
        plain = s.precision == "float32" and s.compile is None
        closed = (b for b in cascade.units if b.gradients == "analytic")
        if not plain and any(not loss.one_pass for block in closed for loss in block.losses):
            raise BadValue(
                f"gradients = 'analytic' with precision = {s.precision!r} and compile = {s.compile!r}: the "
                "closed form is computed in float32 and not compiled; leave precision and compile"
            )

    def reset_optimizers(self) -> None:
        """New optimizers, without momentum."""
        self.optimizers = make_optimizers(self.cascade, self.settings)
        for k, block in enumerate(self.cascade.units):
            block.optimizer = self.optimizers[f"block{k}"]

    # ---- training --------------------------------------------------------------------------------------

    def fit(
        self,
        train: Any,
        validation: Any = None,
        *,
        checkpoint: str | Path | Checkpoint | None = None,
        hooks: Hooks | None = None,
        **settings: Any,
    ) -> History:
        """Train.

        Args:
            train: `bpfree.data.TensorData`, a pair of tensors, or a map-style data set.
            validation: The same; without it there is neither early stopping nor a best to restore.
            checkpoint: File to save the run's state in, every 30 seconds (see `Checkpoint`) and at the end.
                If it exists, the run goes on from it, and ends bit for bit as one that was never stopped.
            hooks: Who looks on, see `Hooks`.
            **settings: The fields of `FitSettings`.

        Raises:
            BadValue: If a setting or the data do not fit.
            Diverged: If a loss became NaN or infinite.
        """
        fit = validate(FitSettings, settings, "fit")
        data = check_data(train, self.n_classes, self.device)
        judge = None if validation is None else check_data(validation, data.n_classes, self.device)
        if fit.patience is not None and judge is None:
            raise BadValue(f"patience = {fit.patience}: early stopping needs validation data")
        self.build(data.sample_shape, data.n_classes)
        if judge is not None:
            self._check_shape(judge.sample_shape)
        self.reset_optimizers()
        if isinstance(checkpoint, str | Path):
            checkpoint = Checkpoint(Path(checkpoint))
        if checkpoint is not None:
            ckpt.check_path(checkpoint.path)
        with self.running(), progress_bar(self.id, self.progress and hooks is None) as shown:
            hooks = hooks or Hooks(progress=shown)
            begun = checkpoint is not None and checkpoint.path.exists()
            before = History() if begun else self.prepare(data, judge, fit, checkpoint, hooks)
            loop = Fit(
                cascade=self.cascade,
                optimizers=self.optimizers,
                settings=self.settings,
                fit=fit,
                train=data,
                validation=judge,
                seed=self.seed,
                fingerprint=self._fingerprint(fit, data, judge),
                checkpoint=checkpoint,
                hooks=hooks,
                history=before,
                diagnose=lambda: self._diagnose(judge),
            )
            return loop.run()

    def step(self, x: Tensor, y: Tensor, number: int = 0) -> list[Tensor]:
        """Update every block (and readout that learns) once on one batch, outside any loop.

        Args:
            x: Samples, ``[B, ...]``.
            y: Labels, ``[B]``.
            number: Number of the step, for the random streams.

        Returns:
            The loss of each block before its step, bottom first, then those of readouts.

        Raises:
            BadValue: If the batch does not fit.
        """
        cascade = self.cascade
        check_batch(x, y, self.n_classes, self.device)
        self._check_shape(x.shape[1:])
        with self.running():
            return self._step(cascade, x, y, number)

    def _step(self, cascade: Cascade, x: Tensor, y: Tensor, number: int) -> list[Tensor]:
        scores, extra = None, []
        cascade.train()
        seed = _seeds.derive(self.seed, "step", 0, number)
        for name in cascade.readouts:
            readout = cascade.readout(name)
            if readout.learns:
                _seeds.seed_global(y.device, seed, "readout")
                with torch.no_grad():
                    outputs = cascade.outputs(cascade.encoding.view(x, readout.view))
                scores = readout(outputs, cascade.losses).detach()
                extra.append(update_readout(readout, self.optimizers[f"readout.{name}"], outputs, y))
        drawn = cascade.encoding.draw(
            y, _seeds.generator(y.device, self.seed, "negatives", 0, number), scores
        )
        rows, target = cascade.encoding.encode(x, y, drawn)
        return step(cascade.units, rows, target, seed) + extra

    # ---- using -----------------------------------------------------------------------------------------

    def evaluate(self, data: Any) -> dict[str, Any]:
        """Accuracy of the prediction rule, of the other readouts, and of each block alone.

        Returns:
            ``{"accuracy": share, "readouts": {name: share}, "blocks": [share, ...]}``.

        Raises:
            BadValue: If the data do not fit what the trainer was built for.
            Diverged: If scores are not finite.
        """
        samples = self._data(data)
        with self.running():
            found = Evaluator(self.cascade, samples).accuracies(list(self.cascade.readouts))
        return {
            "accuracy": found[self.cascade.headline],
            "readouts": {name: found[name] for name in self.cascade.readouts},
            "blocks": [value for name, value in found.items() if name.startswith("block ")],
        }

    def predict(self, x: Tensor) -> Tensor:
        """The class of each sample ``x [B, ...]``, ``[B]``.

        Raises:
            BadValue: If the samples do not fit what the trainer was built for.
        """
        data = self._data((x, torch.zeros(len(x), dtype=torch.long, device=x.device)))
        headline = self.cascade.headline
        with self.running():
            return Evaluator(self.cascade, data).scores([headline])[headline].argmax(1)

    def save(self, path: str | Path) -> None:
        """Save all weights, heads and readouts included, with the trainer's settings (safetensors, JSON).

        Raises:
            BadValue: If nothing can be written there, or the trainer has not been built.
        """
        state = {"trainer": self.id, "settings": asdict(self.settings), "n_classes": self.n_classes}
        ckpt.write(Path(path), self.cascade.state_dict(), state)

    def load(self, path: str | Path, sample_shape: Sequence[int] | None = None) -> None:
        """Load what `save` wrote, into a trainer of the same kind and network.

        Args:
            path: The file.
            sample_shape: Shape of a sample, needed if the trainer has not been built.

        Raises:
            BadValue: If the file is of another trainer or network, or the shape is needed.
        """
        tensors, state = ckpt.read(Path(path), self.device)
        if "trainer" not in state:
            raise BadValue(f"{path} is the checkpoint of a run: go on with it by fit(checkpoint=...)")
        if state["trainer"] != self.id:
            raise BadValue(
                f"{path} was saved by {state['trainer']!r}, not by {self.id!r}: load it into one of that kind"
            )
        if self._cascade is None:
            if sample_shape is None:
                raise BadValue(
                    "load: give sample_shape, for example (1, 28, 28): the trainer has not been built"
                )
            self.build(sample_shape, state["n_classes"])
        ckpt.load_module(self.cascade, tensors, Path(path))
        self.cascade.eval()

    # ---- inside ----------------------------------------------------------------------------------------

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

    def clone(self) -> Trainer:
        """An independent copy, weights and optimizers included, for probing a step."""
        twin = copy.deepcopy(self)
        if twin._cascade is not None and self.settings.compile is not None:
            for block in twin._cascade.units:
                # A compiled function is not copied: it would go on to compute with the original's weights.
                block.compile(self.settings.compile)
        return twin

    def stages(self, cut: Any = "weight") -> tuple[list[nn.Sequential], nn.Module]:
        """The net's stages and its output layer; a cascade that was cut already keeps its cut."""
        if isinstance(self.net, Cascade):
            raise BadValue(f"{self.id} cuts the network itself: pass the module, not a cascade")
        return split(self.net, cut)

    def _diagnose(self, judge: TensorData | None) -> dict[str, Any]:
        if judge is None:
            return {}
        return self.diagnose(*judge.batch(torch.arange(min(PROBE_SAMPLES, len(judge)))))

    def _data(self, data: Any) -> TensorData:
        found = check_data(data, self.n_classes, self.device)
        self._check_shape(found.sample_shape)
        return found

    def _fingerprint(self, fit: FitSettings, *data: TensorData | None) -> str:
        shape = [list(p.shape) for p in self.cascade.parameters()]
        seen = [None if d is None else _content(d) for d in data]
        parts = [self.id, asdict(self.settings), asdict(fit), self.seed, shape, repr(self.cascade), seen]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def keep_maps(stages: list[nn.Sequential], output: nn.Module) -> tuple[list[nn.Sequential], nn.Module]:
    """Move a flattening at the end of the last stage to the output layer, so that every stage gives maps."""
    *below, last = stages
    if len(last) > 1 and isinstance(last[-1], nn.Flatten):
        return [*below, last[:-1]], nn.Sequential(last[-1], output)
    return stages, output


def single_weights(blocks: Sequence[Block]) -> bool:
    """Whether no block's body has more than one layer with weights."""
    return all(
        sum(isinstance(m, nn.Linear | nn.modules.conv._ConvNd) for m in b.body.modules()) <= 1 for b in blocks
    )


def _content(data: TensorData) -> list[Any]:
    """What tells two data sets apart: labels, a sample of the inputs, and what is done to them."""
    some = data.x[:: max(1, len(data) // 64)].contiguous().cpu().numpy().tobytes()
    digest = hashlib.sha256(data.y.cpu().numpy().tobytes() + some).hexdigest()
    return [data.name, len(data), list(data.sample_shape), list(data.augment), data.mean, data.std, digest]
