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
from bpfree.data import GraphData, TensorData
from bpfree.data._convert import as_tensor, is_array
from bpfree.encodings import LabelOverlay
from bpfree.schedules import Pipeline, Store, Workers, crew, step
from bpfree.trainers import checkpoint as ckpt
from bpfree.trainers import saving
from bpfree.trainers.building import LEVELS, Builder, bodies, keep_maps, level_of
from bpfree.trainers.fitting import Fit
from bpfree.trainers.graph_evaluation import make_evaluator
from bpfree.trainers.history import History
from bpfree.trainers.inputs import check_batch, check_data, warn_if_shifted
from bpfree.trainers.labels import fit_labels, place_as_saved
from bpfree.trainers.optimizers import update_readout
from bpfree.trainers.progress import progress_bar
from bpfree.trainers.run import Checkpoint, Hooks
from bpfree.trainers.scaling import Scaling
from bpfree.trainers.settings import FitSettings, set_lr
from bpfree.trainers.small_batches import check_batches, evaluating
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
    #: How samples become inputs, decided by the first training data; None before: nothing is scaled.
    scaling: Scaling | None = None
    _next_step = 0

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
        """`build` for training on ``data``, whose scaling all other samples are given from now on.

        The data show where labels go and how long their codes are, too.

        Raises:
            BadValue: If the data do not fit the network, or a trainer that was built before.
        """
        self._check_kind_of_data(data)
        self.build(data.sample_shape, data.n_classes)
        self.scaling = self.scaling or Scaling.of(data)
        self._fit_labels(data)

    def _check_batch(self, x: Tensor, y: Tensor) -> None:
        check_batch(x, y, self.n_classes, self.device, self.dtype)
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
            train: `bpfree.data.TensorData`, a pair of tensors or NumPy arrays, or a map-style data set. What
                the first run is given decides how samples are scaled, see `scaling`.
            validation: The same; without it there is neither early stopping nor a best to restore. Samples
                without statistics of their own are standardized as the training data are.
            checkpoint: File to save the run's state in, every 30 seconds (see `Checkpoint`) and at the end.
                If it exists, the run goes on from it, and ends bit for bit as one that was never stopped.
                With more ``epochs`` a finished run goes on too, where nothing in it depends on their number:
                one stage, a constant learning rate, one worker, no devices.
            hooks: Who looks on, see `Hooks`.
            pipeline: How the workers of ``schedule = "pipelined"`` work together, see `schedules.Pipeline`.
            cache_dir: Folder on a disk for the features that are kept while the run lasts, which may then be
                larger than memory; nothing of them is left there afterwards. None: they are kept in memory.
            **settings: The fields of `FitSettings`.

        Each run begins with new optimizers, without momentum; one that was set from outside, in
        ``optimizers`` or in a block, or whose learning rate or other settings were changed there, stays, and
        goes on as it is.

        Raises:
            BadValue: If a setting or the data do not fit, or ``cache_dir`` cannot take the features.
            Diverged: If a loss became NaN or infinite.
            WorkerLost: If another worker of a pipelined run is gone; started again, the run goes on.
        """
        together = validate(Pipeline, pipeline or {}, "pipeline")
        if not (hooks is None or isinstance(hooks, Hooks)):
            raise BadValue(f"hooks = {hooks!r}: expected bpfree.Hooks(window=..., progress=...)")
        fit = validate(FitSettings, settings, "fit")
        data, judge = self._data_of_run(train, validation)
        if fit.patience is not None and judge is None:
            raise BadValue(f"patience = {fit.patience}: early stopping needs validation data")
        store = Store(cache_dir)
        if judge is not None and self._cascade is not None:
            # A run that is refused changes nothing.
            self._check_shape(judge.sample_shape)
        fresh, shows = self._cascade is None, self.progress and hooks is None
        check_batches(self, data, judge, fit)
        self.build_for(data)
        if judge is not None:
            self._check_shape(judge.sample_shape)
        warn_if_shifted(data)
        self.renew_optimizers()
        checkpoint = self._checkpoint(checkpoint)
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
                identity=saving.identity(self, fit, data, judge),
                checkpoint=checkpoint,
                hooks=hooks,
                history=before,
                diagnose=lambda: self._diagnose(judge),
                crew=workers,
                store=store,
                metric=self.metric,
            )
            try:
                return loop.run()
            finally:
                # The schedule of learning rates is the run's; a step outside it has the rate of the settings.
                set_lr(self.optimizers.values(), 1.0)

    def step(self, x: Tensor, y: Tensor, number: int | None = None) -> list[Tensor]:
        """Update every block (and readout that learns) once on one batch, outside any loop.

        Args:
            x: Inputs of the model, ``[B, ...]``, as `bpfree.data.TensorData.batch` makes them: nothing is
                scaled here.
            y: Labels, ``[B]``.
            number: Number of the step, for the random streams (dropout, negatives); None: one more than that
                of the last call, from 0 on.

        Returns:
            The loss of each block before its step, bottom first, then those of readouts.

        Raises:
            BadValue: If the batch does not fit.
        """
        cascade = self.cascade
        self._check_batch(x, y)
        self._fit_labels_once(x, y)
        number = self._next_step if number is None else number
        self._next_step = number + 1
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
        """The metric of the prediction rule, of the other readouts, and of each block alone.

        Args:
            data: As for `fit`. Samples without statistics are standardized as the training data were.

        Returns:
            ``{"accuracy": share, "readouts": {name: share}, "blocks": [share, ...]}``; for another ``metric``
            than the accuracy its name takes the place of ``"accuracy"``.

        Raises:
            BadValue: If the data do not fit what the trainer was built for.
            Diverged: If scores are not finite.
        """
        samples = self._data(data)
        with evaluating(), self.running():
            found = make_evaluator(self.cascade, samples).evaluate(self.metric, list(self.cascade.readouts))
        return {
            self.metric.name: found[self.cascade.headline],
            "readouts": {name: found[name] for name in self.cascade.readouts},
            "blocks": [value for name, value in found.items() if name.startswith("block ")],
        }

    def predict(self, x: Any) -> Tensor:
        """The class of each sample, ``[B]``.

        Args:
            x: Samples as they were before training standardized them: a tensor or NumPy array ``[B, ...]``,
                or data whose labels are not looked at.

        Raises:
            BadValue: If the samples do not fit what the trainer was built for.
        """
        data = self._data(x) if isinstance(x, TensorData | GraphData) else self._unlabelled(x)
        headline = self.cascade.headline
        with evaluating(), self.running():
            return make_evaluator(self.cascade, data).scores([headline])[headline].argmax(1)

    def _unlabelled(self, x: Any) -> TensorData:
        if not is_array(x):
            raise BadValue(
                f"samples to predict are a {type(x).__name__}: expected a tensor or NumPy array [B, ...], or "
                "TensorData"
            )
        x = as_tensor(x, "x")
        if not x.ndim:
            raise BadValue("samples to predict are a single number: expected [B, ...]")
        return self.data_of(x, torch.zeros(len(x), dtype=torch.long, device=x.device))

    def data_of(self, x: Tensor, y: Tensor) -> TensorData:
        """Samples ``x [B, ...]`` with labels ``y [B]`` as data, scaled as the training data were."""
        return self._data((x, y))

    def save(self, path: str | Path) -> None:
        """Save all weights, heads and readouts included, with the trainer's settings (safetensors, JSON).

        Raises:
            BadValue: If nothing can be written there, or the trainer has not been built.
        """
        ckpt.write(Path(path), self.cascade.state_dict(), self._saved_state())

    def _saved_state(self) -> dict[str, Any]:
        """What `save` writes beside the tensors, as JSON."""
        return {
            "trainer": self.id,
            "settings": asdict(self.settings),
            "n_classes": self.n_classes,
            "scaling": None if self.scaling is None else self.scaling.state(),
        }

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
            self._build(sample_shape, state["n_classes"], lambda cascade: place_as_saved(cascade, tensors))
        elif place_as_saved(self.cascade, tensors):
            self._renew_with_labels()
        else:
            self.renew_optimizers()
        ckpt.load_module(self.cascade, tensors, Path(path))
        if state.get("scaling") is not None:
            self.scaling = Scaling.from_state(state["scaling"])
        self.cascade.eval()

    # ---- inside ----------------------------------------------------------------------------------------

    def clone(self) -> Trainer:
        """An independent copy, weights and optimizers included, for probing a step."""
        return copy.deepcopy(self)

    def _fit_labels_once(self, x: Tensor, y: Tensor) -> None:
        """`_fit_labels` to a batch, where no training data were seen before."""
        encoding = self.cascade.encoding
        if isinstance(encoding, LabelOverlay) and not encoding.seen:
            self._fit_labels(TensorData(x, y, encoding.n_classes, name="the first batch"))

    def _fit_labels(self, train: TensorData) -> None:
        """Decide by training data where labels go, and how long their codes are."""
        with _seeds.borrowed(self.device):
            _seeds.seed_global(self.device, self.seed, "labels")
            if fit_labels(self.cascade, train):
                self._renew_with_labels()

    def _renew_with_labels(self) -> None:
        """New optimizers, for a first block that has weights for labels now.

        One that was set or changed from outside moves them as it moves the first layer.
        """
        before = {id(p) for p in _moved(self._made["block0"])}
        self.renew_optimizers()
        if (own := self.replaced.get("block0")) is not None:
            first = {key: value for key, value in own.param_groups[0].items() if key != "params"}
            own.add_param_group(
                first | {"params": [p for p in _moved(self._made["block0"]) if id(p) not in before]}
            )

    def _diagnose(self, judge: TensorData | None) -> dict[str, Any]:
        if judge is None:
            return {}
        return self.diagnose(*judge.batch(torch.arange(min(PROBE_SAMPLES, len(judge)))))

    def _data_of_run(self, train: Any, validation: Any) -> tuple[TensorData, TensorData | None]:
        """Training and validation data, checked, and scaled as the first training data are."""
        data = self._scaled(self._checked(train, self.n_classes))
        if validation is None:
            return data, None
        scaling = self.scaling or (Scaling.of(data) if isinstance(data, TensorData) else None)
        return data, self._scaled(self._checked(validation, data.n_classes), scaling)

    def _checkpoint(self, given: str | Path | Checkpoint | None) -> Checkpoint | None:
        """The checkpoint of a run, which can be written."""
        found = Checkpoint(Path(given)) if isinstance(given, str | Path) else given
        if found is not None:
            ckpt.check_path(found.path)
            ckpt.check_tensors(found.path, self.cascade.state_dict())
        return found

    def _data(self, data: Any) -> TensorData:
        found = self._checked(data, self.n_classes)
        self._check_shape(found.sample_shape)
        return self._scaled(found)

    def _checked(self, data: Any, n_classes: int | None) -> TensorData:
        found = check_data(data, n_classes, self.device, self.dtype)
        self._check_kind_of_data(found)
        return found

    def _check_kind_of_data(self, data: Any) -> None:
        if not isinstance(data, TensorData):
            raise BadValue(
                f"{self.id} trains on samples that are no nodes of a graph, and was given {data!r}: use a "
                "trainer of graphs, such as bpfree.ForwardGNN"
            )

    def _scaled(self, data: TensorData, scaling: Scaling | None = None) -> TensorData:
        scaling = scaling or self.scaling
        # Nodes of a graph are not scaled here.
        return data if scaling is None or not isinstance(data, TensorData) else scaling.apply(data)


def _moved(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
