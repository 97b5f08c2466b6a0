"""`Trainer`: fit, evaluate, predict, save and load. A subclass defines the cascade."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from bpfree import _seeds
from bpfree._errors import BadValue
from bpfree._feature_store import Store
from bpfree._renamed import warn_renamed
from bpfree._settings import validate
from bpfree._types import JsonObject
from bpfree.core.cascade import Cascade
from bpfree.data import GraphData, TensorData
from bpfree.data._convert import as_tensor, is_array
from bpfree.distributed.start import start_workers
from bpfree.distributed.workers import Pipeline, Workers
from bpfree.encodings.label_overlay import LabelOverlay
from bpfree.engine import checkpoint as ckpt
from bpfree.engine import saving
from bpfree.engine.base_feed import BaseFeed
from bpfree.engine.evaluation import Evaluator
from bpfree.engine.feed import Feed
from bpfree.engine.history import History
from bpfree.engine.identity import fingerprint, identity
from bpfree.engine.loop import TrainingLoop
from bpfree.engine.measurements import Measurements
from bpfree.engine.optimizers import update_readout
from bpfree.engine.run_state import Checkpoint, Hooks, RunState
from bpfree.engine.settings import FitSettings, set_lr
from bpfree.engine.step import step
from bpfree.nn import physical_devices
from bpfree.trainers.building import LEVELS, Builder, bodies, keep_maps, level_of
from bpfree.trainers.inputs import check_batch, check_data, warn_if_shifted
from bpfree.trainers.labels import fit_labels, place_as_saved
from bpfree.trainers.progress import progress_bar
from bpfree.trainers.run_context import RunContext
from bpfree.trainers.scaling import Scaling
from bpfree.trainers.small_batches import check_batches, evaluating
from bpfree.trainers.space import STEPS, Space

__all__ = ["LEVELS", "PROBE_SAMPLES", "Trainer", "bodies", "keep_maps", "level_of"]

#: Number of validation samples for `Trainer.diagnose`.
PROBE_SAMPLES = 500

#: Hooks of the first release, and their new names.
RENAMED_HOOKS = {"tutor": "front_trainer"}


class Trainer(Builder):
    """Trains a network by local losses.

    Args:
        net: A module to cut into blocks (see `bpfree.localize`), whose last layer is its output layer, or a
            `Cascade`. Its parameters are trained in place.
        seed: Seed of all random numbers: heads, order of samples, negative samples, dropout.
        device: Device to train on; by default that of the network.
        progress: Whether to show a progress bar.
        **settings: The fields of `Settings`.

    Raises:
        BadValue: If a setting is unknown or out of range, or the network cannot be cut.
    """

    #: The search space of `python -m bpfree.tune`; a config may narrow it.
    space: ClassVar[Space] = STEPS
    #: The scaling of samples, set by the first training data; None before that.
    scaling: Scaling | None = None
    _next_step = 0

    # ---- for subclasses, beside `make_cascade` and `locality` -------------------------------------------

    def __init_subclass__(cls, **options: object) -> None:
        """Accept hooks with the names of the first release, and refuse one with its arguments.

        Raises:
            BadValue: If `prepare` expects several arguments.
        """
        super().__init_subclass__(**options)
        for old, new in RENAMED_HOOKS.items():
            if old in vars(cls) and new not in vars(cls):
                warn_renamed(f"{cls.__name__}.{old}", f"{cls.__name__}.{new}")
                setattr(cls, new, vars(cls)[old])
        prepare = vars(cls).get("prepare")
        if prepare is not None and not _accepts_one_argument(prepare):
            raise BadValue(
                f"{cls.__name__}.prepare{inspect.signature(prepare)}: it is called with one argument now; "
                "define prepare(self, run), with run.train, run.validation, run.fit, run.checkpoint and "
                "run.hooks"
            )

    def prepare(self, run: RunContext) -> History:
        """Called once in a run, before the blocks are trained, to train fronts or to read the data.

        Args:
            run: The data and options of the run.

        Returns:
            A history whose rows come first in the history of the run.
        """
        return History()

    def front_trainer(self) -> Trainer | None:
        """A new trainer that is equal to the one that `prepare` trains fronts with; None: it trains none."""
        return None

    def tutor(self) -> Trainer | None:
        """Old name of `front_trainer`."""
        warn_renamed("Trainer.tutor", "Trainer.front_trainer")
        return self.front_trainer()

    def make_feed(self, train: TensorData, fit: FitSettings, store: Store) -> BaseFeed:
        """Create the feed, which returns the training rows of a run.

        Args:
            train: The training data.
            fit: Settings of the run.
            store: Where features are cached.
        """
        return Feed(self.cascade, train, self.seed, fit.batch_size, self._caches_features(), store)

    def make_evaluator(self, data: TensorData, cache: bool = False, store: Store | None = None) -> Evaluator:
        """Create an evaluator of the readouts on ``data``.

        Args:
            data: The samples.
            cache: Whether the features of frozen blocks are cached.
            store: Where they are cached; by default in memory.
        """
        return Evaluator(self.cascade, data, cache, store)

    def _caches_features(self) -> bool:
        """Whether training caches features. It does not if every loss needs a single pass over the data."""
        return self.settings.cache and not all(block.rule.one_pass for block in self.cascade.units)

    def _caches_validation(self) -> bool:
        """Whether validation caches features of frozen blocks.

        It does not with devices: a resumed run would measure again, with other results.
        """
        greedy = self.settings.schedule == "greedy"
        return self.settings.cache and greedy and not physical_devices(self.cascade)

    def diagnose(self, x: Tensor, y: Tensor) -> dict[str, object]:
        """Values about the blocks that are added to the rows of the history, by name. Here: none.

        Args:
            x: The first validation samples, ``[B, ...]``.
            y: Their labels, ``[B]``.
        """
        return {}

    def build_for(self, data: TensorData) -> None:
        """Build the trainer for training on ``data``, unless it has been built.

        The data set the scaling of all samples, and where and on what scale labels are added to them.

        Raises:
            BadValue: If the data do not fit the network, or do not fit a trainer that has been built.
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
        train: object,
        validation: object = None,
        *,
        checkpoint: str | Path | Checkpoint | None = None,
        hooks: Hooks | None = None,
        pipeline: Mapping[str, object] | None = None,
        cache_dir: str | Path | None = None,
        **settings: object,
    ) -> History:
        """Train.

        Args:
            train: `bpfree.data.TensorData`, a pair of tensors or NumPy arrays, or a map-style data set. The
                data of the first run set the scaling of samples, see `scaling`.
            validation: The same; without it there is no early stopping, and no best epoch to restore. Samples
                without mean and standard deviation are standardized by those of the training data.
            checkpoint: File in which the state of the run is saved, every 30 seconds (see `Checkpoint`) and
                at the end. If it exists, the run continues from it, and ends with the same bits as an
                uninterrupted run. A finished run can be continued with more ``epochs`` if nothing else
                depends on their number: one stage, a constant learning rate, one worker, no devices.
            hooks: Callbacks, see `Hooks`.
            pipeline: Settings of ``schedule = "pipelined"``, see `bpfree.distributed.workers.Pipeline`.
            cache_dir: Folder for cached features, which may then be larger than memory. The files are removed
                at the end of the run. None: features are cached in memory.
            **settings: The fields of `FitSettings`.

        Each run starts with new optimizers, without momentum. An optimizer that the user has set, in
        ``optimizers`` or in a block, or whose hyperparameters the user has changed, is not replaced.

        Returns:
            The history, one row for each epoch.

        Raises:
            BadValue: If a setting or the data do not fit, or ``cache_dir`` cannot store the features.
            Diverged: If a loss became NaN or infinite.
            WorkerLost: If another worker of a pipelined run has ended; when restarted, the run is resumed.
        """
        pipeline_settings = validate(Pipeline, pipeline or {}, "pipeline")
        if not (hooks is None or isinstance(hooks, Hooks)):
            raise BadValue(f"hooks = {hooks!r}: expected bpfree.Hooks(window=..., progress=...)")
        fit = validate(FitSettings, settings, "fit")
        train_data, validation_data = self._data_of_run(train, validation)
        if fit.patience is not None and validation_data is None:
            raise BadValue(f"patience = {fit.patience}: early stopping needs validation data")
        store = Store(cache_dir)
        show_progress, is_new = self.progress and hooks is None, self._cascade is None
        self._prepare_cascade(train_data, validation_data, fit)
        checkpoint = self._checkpoint(checkpoint)
        description = self.describe() if show_progress and is_new else ""
        with (
            start_workers(self.settings.schedule, pipeline_settings, self.device) as workers,
            self.running(),
            progress_bar(self.id, show_progress and workers.is_first, description) as show,
        ):
            hooks = hooks or Hooks(progress=show)
            run = RunContext(train_data, validation_data, fit, checkpoint, hooks, store)
            if workers.several and self.front_trainer() is not None:
                raise BadValue(
                    f"schedule = 'pipelined': {self.id} trains its fronts before its blocks, which several "
                    "workers cannot do; use 'greedy' or 'simultaneous'"
                )
            history = History() if saving.exists(checkpoint, workers) else self.prepare(run)
            loop = self._make_loop(run, history, workers)
            try:
                return loop.run()
            finally:
                # A run changes learning rates by its schedule. A later step uses those of the settings.
                set_lr(self.optimizers.values(), 1.0)

    def _prepare_cascade(self, data: TensorData, validation: TensorData | None, fit: FitSettings) -> None:
        """Build the cascade if needed, check it with the data of a run, and create new optimizers."""
        if validation is not None and self._cascade is not None:
            # Checked first, so that a run that is refused changes nothing.
            self._check_shape(validation.sample_shape)
        check_batches(self, data, validation, fit)
        self.build_for(data)
        if validation is not None:
            self._check_shape(validation.sample_shape)
        warn_if_shifted(data)
        self.renew_optimizers()

    def _make_loop(self, run: RunContext, history: History, workers: Workers) -> TrainingLoop:
        train, validation, checkpoint = run.train, run.validation, run.checkpoint
        feed = self.make_feed(train, run.fit, run.store)
        evaluator = None
        if validation is not None:
            evaluator = self.make_evaluator(validation, self._caches_validation(), run.store)
        run_identity = identity(
            trainer=self.id,
            seed=self.seed,
            settings=self.settings,
            fit=run.fit,
            cascade=self.cascade,
            dtype=self.dtype,
            train=train.content(),
            validation=None if validation is None else validation.content(),
            replaced=self.replaced,
        )
        path = None if checkpoint is None else checkpoint.path
        state = RunState(
            cascade=self.cascade,
            optimizers=self.optimizers,
            settings=self.settings,
            fit=run.fit,
            seed=self.seed,
            n_samples=len(train.y),
            device=train.y.device,
            identity=run_identity,
            workers=workers,
            measurements=Measurements(self.cascade, feed, path, fingerprint(run_identity)),
            metric=self.metric,
            validated=validation is not None,
            history=history,
        )
        return TrainingLoop(state, feed, evaluator, checkpoint, run.hooks, lambda: self._diagnose(validation))

    def step(self, x: Tensor, y: Tensor, number: int | None = None) -> list[Tensor]:
        """Update every block, and every readout that learns, once on one batch.

        Args:
            x: Inputs of the model, ``[B, ...]``, as `bpfree.data.TensorData.batch` returns them. They are not
                scaled.
            y: Labels, ``[B]``.
            number: Number of the step, which seeds dropout and negative samples. Default: one more than in
                the last call, starting at 0.

        Returns:
            The loss of each block before its step, bottom first, then the losses of readouts.

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
        scores, readout_losses = None, []
        # Setting the mode of every module takes several times as long as reading it.
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
                optimizer = self.optimizers[f"readout.{name}"]
                readout_losses.append(update_readout(readout, optimizer, outputs, y))
        drawn = cascade.encoding.draw(
            y, _seeds.generator(y.device, self.seed, "negatives", 0, number), scores
        )
        rows, target = cascade.encoding.encode(x, y, drawn)
        losses = step(cascade.units, rows, target, seed, message=cascade.encoding.message())
        return losses + readout_losses

    # ---- using -----------------------------------------------------------------------------------------

    def evaluate(self, data: object) -> JsonObject:
        """The metric of the prediction, of the other readouts, and of each block alone.

        Args:
            data: As for `fit`. Samples without statistics are standardized by those of the training data.

        Returns:
            ``{"accuracy": share, "readouts": {name: share}, "blocks": [share, ...]}``; for another ``metric``
            than the accuracy its name takes the place of ``"accuracy"``.

        Raises:
            BadValue: If the data do not fit what the trainer was built for.
            Diverged: If scores are not finite.
        """
        samples = self._data(data)
        with evaluating(), self.running():
            values = self.make_evaluator(samples).evaluate(self.metric, list(self.cascade.readouts))
        return {
            self.metric.name: values[self.cascade.headline],
            "readouts": {name: values[name] for name in self.cascade.readouts},
            "blocks": [value for name, value in values.items() if name.startswith("block ")],
        }

    def predict(self, x: object) -> Tensor:
        """The predicted class of each sample, ``[B]``.

        Args:
            x: Samples that are not standardized yet: a tensor or NumPy array ``[B, ...]``, or data as for
                `fit`, whose labels are not used.

        Raises:
            BadValue: If the samples do not fit what the trainer was built for.
        """
        data = self._data(x) if isinstance(x, TensorData | GraphData) else self._unlabeled(x)
        headline = self.cascade.headline
        with evaluating(), self.running():
            return self.make_evaluator(data).scores([headline])[headline].argmax(1)

    def _unlabeled(self, x: object) -> TensorData:
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
        """Data with samples ``x [B, ...]`` and labels ``y [B]``, scaled as the training data were."""
        return self._data((x, y))

    def save(self, path: str | Path) -> None:
        """Save all weights, including heads and readouts, and the trainer's settings (safetensors, JSON).

        Raises:
            BadValue: If the file cannot be written, or the trainer has not been built.
        """
        ckpt.write(Path(path), self.cascade.state_dict(), self._saved_state())

    def _saved_state(self) -> dict[str, object]:
        """The values that `save` writes with the tensors, as JSON."""
        return {
            "trainer": self.id,
            "settings": asdict(self.settings),
            "n_classes": self.n_classes,
            "scaling": None if self.scaling is None else self.scaling.state(),
        }

    def load(self, path: str | Path, sample_shape: Sequence[int] | None = None) -> None:
        """Load a file of `save` into a trainer of the same class with the same network.

        Args:
            path: The file.
            sample_shape: Shape of a sample. It is required if the trainer has not been built.

        Raises:
            BadValue: If the file is of another trainer or network, or the shape is required.
        """
        tensors, state = ckpt.read(Path(path), self.device)
        if "trainer" not in state:
            raise BadValue(f"{path} is the checkpoint of a run: continue it by fit(checkpoint=...)")
        if state["trainer"] != self.id:
            raise BadValue(
                f"{path} was saved by {state['trainer']!r}, not by {self.id!r}: load it into a trainer "
                f"{state['trainer']!r}"
            )
        if self._cascade is None:
            if sample_shape is None:
                raise BadValue(
                    "load: pass sample_shape, for example (1, 28, 28), since the trainer has not been built"
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
        """An independent copy, including weights and optimizers."""
        return copy.deepcopy(self)

    def _fit_labels_once(self, x: Tensor, y: Tensor) -> None:
        """Call `_fit_labels` with a batch, if it was not called with training data."""
        encoding = self.cascade.encoding
        if isinstance(encoding, LabelOverlay) and not encoding.fitted:
            self._fit_labels(TensorData(x, y, encoding.n_classes, name="the first batch"))

    def _fit_labels(self, train: TensorData) -> None:
        """Set where, and on what scale, labels are added to samples, by the training data."""
        with _seeds.fork_global(self.device):
            _seeds.seed_global(self.device, self.seed, "labels")
            if fit_labels(self.cascade, train):
                self._renew_with_labels()

    def _renew_with_labels(self) -> None:
        """Create new optimizers after weights for labels were added to the first block.

        If the user has set or changed the optimizer of that block, they are added to it, with the
        hyperparameters of the first layer.
        """
        before = {id(p) for p in _parameters(self._default_optimizers["block0"])}
        self.renew_optimizers()
        if (optimizer := self.replaced.get("block0")) is not None:
            group = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
            after = _parameters(self._default_optimizers["block0"])
            optimizer.add_param_group(group | {"params": [p for p in after if id(p) not in before]})

    def _diagnose(self, validation: TensorData | None) -> dict[str, object]:
        if validation is None:
            return {}
        return self.diagnose(*validation.batch(torch.arange(min(PROBE_SAMPLES, len(validation)))))

    def _data_of_run(self, train: object, validation: object) -> tuple[TensorData, TensorData | None]:
        """Training and validation data, checked, with the scaling of the first training data."""
        data = self._scaled(self._checked(train, self.n_classes))
        if validation is None:
            return data, None
        scaling = self.scaling or (Scaling.of(data) if isinstance(data, TensorData) else None)
        return data, self._scaled(self._checked(validation, data.n_classes), scaling)

    def _checkpoint(self, checkpoint: str | Path | Checkpoint | None) -> Checkpoint | None:
        """The checkpoint of a run, checked.

        Raises:
            BadValue: If it cannot be written.
        """
        if isinstance(checkpoint, str | Path):
            checkpoint = Checkpoint(Path(checkpoint))
        if checkpoint is not None:
            ckpt.check_path(checkpoint.path)
            ckpt.check_tensors(checkpoint.path, self.cascade.state_dict())
        return checkpoint

    def _data(self, data: object) -> TensorData:
        checked = self._checked(data, self.n_classes)
        self._check_shape(checked.sample_shape)
        return self._scaled(checked)

    def _checked(self, data: object, n_classes: int | None) -> TensorData:
        checked = check_data(data, n_classes, self.device, self.dtype)
        self._check_kind_of_data(checked)
        return checked

    def _check_kind_of_data(self, data: object) -> None:
        if not isinstance(data, TensorData):
            raise BadValue(
                f"{self.id} trains on samples, not on nodes of a graph, and got {data!r}: use a trainer on "
                "graphs, such as bpfree.ForwardGNN"
            )

    def _scaled(self, data: TensorData, scaling: Scaling | None = None) -> TensorData:
        scaling = scaling or self.scaling
        # Nodes of a graph are not scaled.
        return data if scaling is None or not isinstance(data, TensorData) else scaling.apply(data)


def _accepts_one_argument(prepare: Callable[..., object]) -> bool:
    """Whether ``prepare(self, run)`` is a valid call."""
    try:
        inspect.signature(prepare).bind(None, None)
    except TypeError:
        return False
    return True


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
