"""`Builder`: builds a cascade from a network, and its optimizers."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, SupportsIndex

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from bpfree import _seeds
from bpfree._errors import BadValue
from bpfree._settings import did_you_mean, validate
from bpfree.core.block import BaseBlock, Block
from bpfree.core.cascade import Cascade
from bpfree.core.localize import Cut, check_order, split
from bpfree.core.sharing import check_weights, gradient_groups
from bpfree.engine.optimizers import hyperparameters, make_optimizers, replaced_optimizers
from bpfree.engine.settings import TrainerSettings, state_values
from bpfree.metrics import ACCURACY, Metric
from bpfree.nn import inferring_shapes
from bpfree.nn.weights import detach_computed, weight_matrices
from bpfree.trainers.inputs import accepting, default_dtype, find_device, find_dtype, probe_samples
from bpfree.trainers.space import STEPS, Space

#: The levels of locality. `bpfree.testing.assert_locality` checks the level that a trainer declares.
LEVELS = {
    "L0": "a global backward pass",
    "L1": "no gradient crosses a block",
    "L2": "no gradient crosses a weight layer",
    "L3": "no autograd at all",
}


class Builder(ABC):
    """Builds the cascade of a network and its optimizers. The base class of `bpfree.Trainer`."""

    id: ClassVar[str]
    Settings: ClassVar[type[TrainerSettings]] = TrainerSettings
    #: The search space of `python -m bpfree.tune`; a config may narrow it.
    space: ClassVar[Space] = STEPS
    #: How predictions are scored. Where it depends on the data, `build_for` sets it.
    metric: Metric = ACCURACY
    #: Settings of how a network is cut. They cannot be given together with a `Cascade`.
    cutting: ClassVar[tuple[str, ...]] = (
        "cut", "loss", "loss_options", "output", "head_pool", "head_features", "overlay",
    )  # fmt: skip

    def __init__(
        self,
        net: nn.Module,
        *,
        seed: int = 0,
        device: str | torch.device | None = None,
        progress: bool = True,
        **settings: object,
    ) -> None:
        self.settings = validate(self.Settings, settings, self.id)
        if not isinstance(net, nn.Module):
            raise BadValue(f"net is a {type(net).__name__}: expected a torch.nn.Module")
        given = [name for name in self.cutting if name in settings]
        if isinstance(net, Cascade) and given:
            raise BadValue(
                f"{given[0]} = {settings[given[0]]!r}: the network is a Cascade, which has its blocks and "
                "losses already; pass this to bpfree.localize, or pass the network that was cut"
            )
        _check_backend(self.settings.compile)
        if not isinstance(seed, int):
            raise BadValue(f"seed = {seed!r}: expected an integer")
        self.seed, self.progress = seed, progress
        net_device = next((p.device for p in net.parameters()), torch.device("cpu"))
        if net_device.type == "meta":
            raise BadValue(
                "the network's parameters are on device 'meta', without values: create it on another device, "
                "or call net.to_empty(device='cpu') and initialize it"
            )
        self.device = find_device(device) if device is not None else net_device
        dtype = find_dtype(net)
        if dtype != torch.float32 and self.settings.precision != "float32":
            raise BadValue(
                f"precision = {self.settings.precision!r} with a network of {dtype}: expected a network of "
                "torch.float32; convert it by net.float(), or leave precision out"
            )
        self.net = net.to(self.device)
        self.n_classes: int | None = None
        self._shape: tuple[int, ...] = ()
        self._cascade: Cascade | None = None
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        #: The optimizers that the user has set or changed, by name.
        self.replaced: dict[str, torch.optim.Optimizer] = {}
        self._default_optimizers: dict[str, torch.optim.Optimizer] = {}
        self._default_hyperparameters: dict[str, list[dict[str, object]]] = {}

    @abstractmethod
    def make_cascade(self, n_classes: int) -> Cascade:
        """Create the cascade of ``self.net``: its blocks, losses, encoding and readouts."""

    @property
    @abstractmethod
    def locality(self) -> str:
        """The declared level of locality, a key of `LEVELS`."""

    # ---- building --------------------------------------------------------------------------------------

    @property
    def cascade(self) -> Cascade:
        """The blocks.

        Raises:
            BadValue: Before `build` or `fit`.
        """
        if self._cascade is None:
            raise BadValue(
                "the trainer has not been built for the shape of its data: call fit, load or build first"
            )
        return self._cascade

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network's parameters."""
        return next((p.dtype for p in self.net.parameters() if p.is_floating_point()), torch.float32)

    @property
    def model(self) -> nn.Module:
        """The trained network as an ordinary module: inputs ``[B, ...]`` to class scores ``[B, C]``.

        It expects batches as `bpfree.data.TensorData.batch` returns them: divided by 255 if the samples are
        uint8 images, and standardized if the training data were. `Trainer.predict` scales samples itself.
        """
        return self.cascade.to_module()

    def build(self, sample_shape: Sequence[int], n_classes: int) -> None:
        """Create blocks, heads and optimizers for samples of this shape. `fit` calls it.

        Raises:
            BadValue: If the network does not accept such samples, or was built for another number of classes.
        """
        self._build(sample_shape, n_classes)

    def _build(
        self,
        sample_shape: Sequence[int],
        n_classes: int,
        place_labels: Callable[[Cascade], object] | None = None,
    ) -> None:
        """`build`, with a function that sets where the new cascade adds labels to samples."""
        if self._cascade is not None:
            if self.n_classes != n_classes:
                raise BadValue(
                    f"the trainer was built for {self.n_classes} classes, the data have {n_classes}"
                )
            self._check_shape(sample_shape)
            return
        x = probe_samples(sample_shape, self.device, self.dtype)
        with (
            _seeds.fork_global(self.device),
            default_dtype(self.dtype),
            accepting(sample_shape),
            inferring_shapes(self.net),
        ):
            _seeds.seed_global(self.device, self.seed, "heads")
            if not isinstance(self.net, Cascade):
                stages, output = self.stages(self.settings.cut)
                check_order(self.net, nn.Sequential(*stages, output), x)
            cascade = self.make_cascade(n_classes).to(self.device)
            check_several_classes(self.metric, n_classes)
            if place_labels is not None:
                place_labels(cascade)
            check_weights(cascade, self.net)
            for block in cascade.units:
                block.record_frozen()
            if self.settings.channels_last:
                cascade.to(memory_format=torch.channels_last)
            cascade.eval().build(x, n_classes, state_values(self.settings))
            if isinstance(self.net, Cascade):
                check_order(self.net.to_module(), self.net, x)
        self._adopt(cascade, n_classes, sample_shape)

    def _adopt(self, cascade: Cascade, n_classes: int, sample_shape: Sequence[int]) -> None:
        self._check_gradients(cascade)
        self._cascade, self.n_classes, self._shape = cascade, n_classes, tuple(sample_shape)
        self.reset_optimizers()
        self._compile()

    @torch.no_grad()
    def _check_shape(self, sample_shape: Sequence[int]) -> None:
        """Check that the cascade accepts samples of this shape, if it was built for another one."""
        if tuple(sample_shape) == self._shape:
            return
        training = self.cascade.training
        with accepting(sample_shape), default_dtype(self.dtype), inferring_shapes(self.cascade):
            self.cascade.eval()(probe_samples(sample_shape, self.device, self.dtype))
        self.cascade.train(training)

    def _check_gradients(self, cascade: Cascade) -> None:
        s = self.settings
        plain = s.precision == "float32" and s.compile is None
        if not plain and not all(block.rule.autograd or block.rule.one_pass for block in cascade.units):
            raise BadValue(
                f"gradients = 'analytic' with precision = {s.precision!r} and compile = {s.compile!r}: the "
                "closed form is computed in float32 and not compiled; leave precision and compile"
            )
        for label, group in gradient_groups(cascade.units):
            for block in group:
                block.rule.check(block, label)

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """New optimizers by name: ``block0`` and so on, and ``readout.name`` for readouts that learn."""
        return make_optimizers(self.cascade, self.settings)

    def condition(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:  # noqa: B027 (optional)
        """Register hooks that change gradients before a step, such as clipping. Here: none."""

    def reset_optimizers(self) -> None:
        """New optimizers, without momentum.

        Raises:
            BadValue: If blocks share weights, or no parameter can be trained.
        """
        check_weights(self.cascade, self.net)
        self._check_learns()
        self._default_optimizers = self.make_optimizers()
        self._default_hyperparameters = {
            name: hyperparameters(optimizer) for name, optimizer in self._default_optimizers.items()
        }
        self.condition(self._default_optimizers.values())
        self.replaced = {}
        self._set_optimizers(self._default_optimizers)

    def renew_optimizers(self) -> None:
        """New optimizers, except for those that were set or changed in ``optimizers`` or in a block.

        Raises:
            BadValue: If one updates parameters of another block, or two were set for one block.
        """
        conditioned = dict(self.replaced)
        defaults = self._default_optimizers
        replaced = replaced_optimizers(self.cascade, self.optimizers, defaults)
        for name, optimizer in defaults.items():
            if name not in replaced and hyperparameters(optimizer) != self._default_hyperparameters[name]:
                # A schedule then starts from the learning rate that the user has set.
                for group in optimizer.param_groups:
                    group.pop("initial_lr", None)
                conditioned[name] = replaced[name] = optimizer
        self.reset_optimizers()
        self.condition(o for name, o in replaced.items() if conditioned.get(name) is not o)
        self.replaced = replaced
        self._set_optimizers(self._default_optimizers | replaced)

    def _set_optimizers(self, optimizers: dict[str, torch.optim.Optimizer]) -> None:
        self.optimizers = dict(optimizers)
        for k, block in enumerate(self.cascade.units):
            block.optimizer = self.optimizers[f"block{k}"]

    def _compile(self) -> None:
        if self.settings.compile is not None:
            for block in self.cascade.units:
                block.compile(self.settings.compile)

    def __getstate__(self) -> dict[str, object]:
        """All attributes; weights that hooks have computed are detached, since only leaves can be copied."""
        for module in (self.net, self._cascade or self.net):
            detach_computed(module)
        return self.__dict__

    def __deepcopy__(self, memo: dict[int, object]) -> Builder:
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return copied

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        for module in (self.net, self._cascade or self.net):
            for name, part in module.named_modules():
                if is_parametrized(part):
                    raise BadValue(
                        f"{name or type(part).__name__} is parametrized, which torch does not pickle: use "
                        "save and load, or call torch.nn.utils.parametrize.remove_parametrizations first"
                    )
        return super().__reduce_ex__(protocol)

    def __setstate__(self, state: dict[str, object]) -> None:
        """Restore a copied or pickled state, which has no hooks of optimizers and no compiled functions."""
        self.__dict__.update(state)
        if self._cascade is not None:
            self.condition(self.optimizers.values())
            self._compile()

    def _check_learns(self) -> None:
        parts = [*self.cascade.units, *map(self.cascade.readout, self.cascade.readouts)]
        learns = any(p.requires_grad for part in parts for p in part.parameters())
        if not learns and not any(block.rule.one_pass for block in self.cascade.units):
            raise BadValue(
                "nothing to train: every parameter of the network is frozen; set requires_grad = True for "
                "the parameters to train"
            )

    def describe(self) -> str:
        """A text: the level of locality, the layers and the loss of each block, the number of parameters.

        Raises:
            BadValue: Before `build` or `fit`.
        """
        groups = gradient_groups(self.cascade.units)
        lines = [f"{self.id}: {self.locality}, {LEVELS[self.locality]}"]
        lines += [f"{label}: {' + '.join(map(_layers, group))}" for label, group in groups]
        source = self.cascade.to_module() if isinstance(self.net, Cascade) else self.net
        blocks = [block for _, group in groups for block in group]
        parts = [m for block in blocks for m in (block.front, block.body) if m is not None]
        in_network = {
            p: p.numel()
            for part in (parts if isinstance(source, Cascade) else [source])
            for p in part.parameters()
        }
        in_heads = {p: p.numel() for p in self.cascade.parameters() if p not in in_network}
        n_network, n_heads = sum(in_network.values()), sum(in_heads.values())
        lines.append(f"parameters: network {n_network:,}, local heads {n_heads:,}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        """The result of `describe`, if the trainer is built."""
        return object.__repr__(self) if vars(self).get("_cascade") is None else self.describe()

    @contextmanager
    def running(self) -> Iterator[None]:
        """A context for training, evaluation and prediction.

        It sets the precision of the settings, and restores torch's global random generators at the end.
        """
        low = self.settings.precision == "bfloat16"
        # A cache of converted weights would outlive the step that changes the weights.
        cast = torch.autocast(self.device.type, torch.bfloat16, enabled=low, cache_enabled=False)
        with _seeds.fork_global(self.device), default_dtype(self.dtype), cast:
            yield

    def stages(self, cut: Cut = "weight") -> tuple[list[nn.Sequential], nn.Module]:
        """The stages of the network and its output layer, see `bpfree.split`.

        Raises:
            BadValue: If the network is a `Cascade`.
        """
        if isinstance(self.net, Cascade):
            raise BadValue(f"{self.id} cuts the network itself: pass the module, not a cascade")
        return split(self.net, cut)


def check_several_classes(metric: Metric, n_classes: int) -> None:
    """Check that there are two classes, if the metric is the accuracy.

    Raises:
        BadValue: If there are fewer.
    """
    if n_classes < 2 and metric.name == ACCURACY.name:
        raise BadValue(
            f"the data have {n_classes} class: expected at least 2; pass TensorData(x, y, n_classes=...) if "
            "other classes have no sample yet"
        )


def _check_backend(name: str | None) -> None:
    if name is None:
        return
    # This import takes some seconds.
    from torch import _dynamo

    if name not in _dynamo.list_backends(None):
        # The many experimental and debugging backends are not listed.
        backends = did_you_mean(name, _dynamo.list_backends())
        raise BadValue(f"compile = {name!r}: unknown backend of torch.compile; {backends}")


def keep_maps(stages: list[nn.Sequential], output: nn.Module) -> tuple[list[nn.Sequential], nn.Module]:
    """Move a flattening at the end of a stage to the next stage, so that convolutional stages return maps.

    Dropout between the flattening and the end of the stage is moved with it.
    """
    result: list[nn.Sequential] = []
    moved: list[nn.Module] = []
    for stage in stages:
        layers = [*moved, *stage]
        end = len(layers)
        while end > 1 and isinstance(layers[end - 1], nn.modules.dropout._DropoutNd):
            end -= 1
        flattens = end > 1 and isinstance(layers[end - 1], nn.Flatten)
        moved = layers[end - 1 :] if flattens else []
        result.append(nn.Sequential(*layers[: len(layers) - len(moved)]))
    return result, nn.Sequential(*moved, output) if moved else output


def _layers(block: Block) -> str:
    """The class names of a block's layers and of its loss."""
    inner = [m for part in (block.front, block.body) if part is not None for m in leaves(part)]
    return f"{', '.join(type(m).__name__ for m in inner) or 'no layers'}; {type(block.loss).__name__}"


def leaves(module: nn.Module) -> Iterator[nn.Module]:
    """The modules inside nested `nn.Sequential` containers, in order, without identities."""
    if type(module) is nn.Sequential:
        for child in module:
            yield from leaves(child)
    elif not isinstance(module, nn.Identity):
        yield module


def bodies(blocks: Sequence[BaseBlock]) -> list[nn.Module]:
    """The bodies of the blocks, bottom first. No gradient passes from one to another."""
    return [nn.ModuleList(block.body for block in group) for _, group in gradient_groups(blocks)]


def level_of(bodies: Sequence[nn.Module], best: str = "L2") -> str:
    """The level of locality of blocks with these bodies, a key of `LEVELS`.

    L0 if only the top body has trainable parameters: the gradient of one loss then reaches all of them, as in
    backpropagation. At most L1 if a trainable body has more than one weight matrix or kernel.

    Args:
        bodies: Bottom first.
        best: The level in all other cases.
    """
    learning = [any(p.requires_grad for p in body.parameters()) for body in bodies]
    if learning[-1] and not any(learning[:-1]):
        return "L0"
    counts = (
        len(list(weight_matrices(body))) for body, learns in zip(bodies, learning, strict=True) if learns
    )
    return best if max(counts, default=0) <= 1 else min(best, "L1")
