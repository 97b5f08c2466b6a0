"""`Trainer`: fit, evaluate, predict, save, load. A family is a thin subclass that makes a cascade."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from bpfree import _seeds
from bpfree._errors import BadValue
from bpfree._settings import validate
from bpfree.cascade import Cascade
from bpfree.data import TensorData
from bpfree.nn.weights import detach_computed
from bpfree.schedules import Pipeline, Store, Workers, crew, step
from bpfree.trainers import checkpoint as ckpt
from bpfree.trainers import saving
from bpfree.trainers.building import LEVELS, Builder, bodies, keep_maps, level_of
from bpfree.trainers.fitting import Fit
from bpfree.trainers.graph_evaluation import make_evaluator
from bpfree.trainers.history import History
from bpfree.trainers.inputs import check_batch, check_data
from bpfree.trainers.optimizers import update_readout
from bpfree.trainers.progress import progress_bar
from bpfree.trainers.run import Checkpoint, Hooks
from bpfree.trainers.settings import FitSettings
from bpfree.trainers.space import STEPS, Space

__all__ = ["LEVELS", "PROBE_SAMPLES", "Trainer", "bodies", "keep_maps", "level_of"]

#: Samples that `Trainer.diagnose` looks at.
PROBE_SAMPLES = 500


class Trainer(Builder):
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

    #: What `python -m bpfree.tune` may search; a config may narrow it.
    space: ClassVar[Space] = STEPS

    # ---- what a family may say, beside `Builder.make_cascade` and `Builder.locality` --------------------

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

    def tutor(self) -> Trainer | None:
        """A new trainer like the one by which `prepare` trains the fronts; None: it trains nothing."""
        return None

    def diagnose(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        """Figures about the blocks, beside accuracy, for the history's rows: nothing here.

        Args:
            x: The first validation samples, ``[B, ...]``.
            y: Their labels, ``[B]``.
        """
        return {}

    def build_for(self, data: TensorData) -> None:
        """`build` for samples like those of ``data``."""
        self.build(data.sample_shape, data.n_classes)

    def _check_batch(self, x: Tensor, y: Tensor) -> None:
        check_batch(x, y, self.n_classes, self.device)
        self._check_shape(x.shape[1:])

    # ---- training --------------------------------------------------------------------------------------

    def fit(
        self,
        train: Any,
        validation: Any = None,
        *,
        checkpoint: str | Path | Checkpoint | None = None,
        hooks: Hooks | None = None,
        pipeline: Mapping[str, Any] | None = None,
        cache_dir: str | Path | None = None,
        **settings: Any,
    ) -> History:
        """Train.

        Args:
            train: `bpfree.data.TensorData`, a pair of tensors, or a map-style data set.
            validation: The same; without it there is neither early stopping nor a best to restore.
            checkpoint: File to save the run's state in, every 30 seconds (see `Checkpoint`) and at the end.
                If it exists, the run goes on from it, and ends bit for bit as one that was never stopped.
            hooks: Who looks on, see `Hooks`.
            pipeline: How the workers of ``schedule = "pipelined"`` work together, see `schedules.Pipeline`.
            cache_dir: Folder on a disk for the features that are kept while the run lasts, which may then be
                larger than memory; nothing of them is left there afterwards. None: they are kept in memory.
            **settings: The fields of `FitSettings`.

        Raises:
            BadValue: If a setting or the data do not fit, or ``cache_dir`` cannot take the features.
            Diverged: If a loss became NaN or infinite.
            WorkerLost: If another worker of a pipelined run is gone; started again, the run goes on.
        """
        together = validate(Pipeline, pipeline or {}, "pipeline")
        fit = validate(FitSettings, settings, "fit")
        data = check_data(train, self.n_classes, self.device)
        judge = None if validation is None else check_data(validation, data.n_classes, self.device)
        if fit.patience is not None and judge is None:
            raise BadValue(f"patience = {fit.patience}: early stopping needs validation data")
        store = Store(cache_dir)
        fresh, shows = self._cascade is None, self.progress and hooks is None
        self.build_for(data)
        if judge is not None:
            self._check_shape(judge.sample_shape)
        self.reset_optimizers()
        if isinstance(checkpoint, str | Path):
            checkpoint = Checkpoint(Path(checkpoint))
        if checkpoint is not None:
            ckpt.check_path(checkpoint.path)
            ckpt.check_tensors(checkpoint.path, self.cascade.state_dict())
        with (
            crew(self.settings.schedule, together, self.device) as workers,
            self.running(),
            progress_bar(
                self.id, shows and workers.leads, self.describe() if shows and fresh else ""
            ) as shown,
        ):
            hooks = hooks or Hooks(progress=shown)
            if isinstance(workers, Workers) and self.tutor() is not None:
                raise BadValue(f"schedule = 'pipelined': {self.id} trains its fronts first, by one worker")
            begun = saving.begun(checkpoint, workers)
            before = History() if begun else self.prepare(data, judge, fit, checkpoint, hooks)
            loop = Fit(
                cascade=self.cascade,
                optimizers=self.optimizers,
                settings=self.settings,
                fit=fit,
                train=data,
                validation=judge,
                seed=self.seed,
                fingerprint=saving.fingerprint(self, fit, data, judge),
                checkpoint=checkpoint,
                hooks=hooks,
                history=before,
                diagnose=lambda: self._diagnose(judge),
                crew=workers,
                store=store,
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
        self._check_batch(x, y)
        with self.running():
            return self._step(cascade, x, y, number)

    def _step(self, cascade: Cascade, x: Tensor, y: Tensor, number: int) -> list[Tensor]:
        scores, extra = None, []
        # Setting the mode of every module takes several times as long as looking at it.
        if not all(module.training for module in cascade.modules()):
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
        return step(cascade.units, rows, target, seed, message=cascade.encoding.message()) + extra

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
            found = make_evaluator(self.cascade, samples).accuracies(list(self.cascade.readouts))
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
        data = self.data_of(x, torch.zeros(len(x), dtype=torch.long, device=x.device))
        headline = self.cascade.headline
        with self.running():
            return make_evaluator(self.cascade, data).scores([headline])[headline].argmax(1)

    def data_of(self, x: Tensor, y: Tensor) -> TensorData:
        """Samples ``x [B, ...]`` with labels ``y [B]`` as data."""
        return self._data((x, y))

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

    def clone(self) -> Trainer:
        """An independent copy, weights and optimizers included, for probing a step."""
        for module in (self.net, self._cascade or self.net):
            detach_computed(module)
        twin = copy.deepcopy(self)
        if twin._cascade is not None and self.settings.compile is not None:
            for block in twin._cascade.units:
                # A compiled function is not copied: it would go on to compute with the original's weights.
                block.compile(self.settings.compile)
        return twin

    def _diagnose(self, judge: TensorData | None) -> dict[str, Any]:
        if judge is None:
            return {}
        return self.diagnose(*judge.batch(torch.arange(min(PROBE_SAMPLES, len(judge)))))

    def _data(self, data: Any) -> TensorData:
        found = check_data(data, self.n_classes, self.device)
        self._check_shape(found.sample_shape)
        return found
