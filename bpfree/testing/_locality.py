"""Laws about where gradients go: what a block's loss can reach, and what a declared level is worth."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from bpfree import _seeds
from bpfree._rows import Rows
from bpfree.core.block import Block, descend
from bpfree.core.cascade import Cascade
from bpfree.core.joint import JointBlock
from bpfree.core.sharing import parts_of, shared_weights
from bpfree.nn.weights import weight_matrices
from bpfree.trainers import LEVELS, Trainer

Names = set[str]


def assert_local(trainer: Trainer, x: Tensor, y: Tensor) -> None:
    """Check that no gradient crosses the wall between two blocks while the trainer trains.

    A copy of the trainer takes its steps on one batch, inside `Trainer.fit` and by `Trainer.step`. Whenever
    an optimizer is about to step, the whole cascade is searched for gradients: those of block k must be None
    outside block k, front, body and loss of the others included, and not all None inside; those of a readout
    that learns must be None in every block. Where a block holds others, each inner loss is held to it alone.
    Where fronts are trained before, by a `Trainer.tutor`, it is held to the same, and steps fronts alone.

    Args:
        trainer: Any trainer, built or not; it is not changed.
        x: Samples, ``[B, ...]``.
        y: Labels, ``[B]``.

    Raises:
        AssertionError: naming the block whose loss leaks, and the parameters that it reaches.
    """
    probe = _probe(trainer, x, y)
    for one, other in shared_weights(parts_of(probe.cascade)):
        raise AssertionError(f"{one.name} and {other.name} share a weight, and learn apart")
    with _watched(probe) as reached, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a batch may lack a class
        probe.fit(probe.data_of(x, y), epochs=1, batch_size=len(x))
    _check_reached(probe.cascade, reached, "in fit")
    probe = _probe(trainer, x, y)
    with _watched(probe) as reached:
        probe.step(x, y)
    _check_reached(probe.cascade, reached, "in step")
    for name, found, inner in _inner_reach(probe, x, y):
        _check_one(name, found, inner, probe.cascade, "in one backward pass")
    tutor = probe.tutor()
    if tutor is not None:
        assert_local(tutor, x, y)


def assert_locality(trainer: Trainer, x: Tensor, y: Tensor) -> None:
    """Prove the level of locality that ``trainer.locality`` declares, a key of `bpfree.trainers.LEVELS`.

    L0: the gradient of the top loss reaches the lowest layer that learns. L1: `assert_local`, and bodies
    below the top one learn, too: one block that holds every layer which learns is backpropagation. L2: L1,
    and no body that learns has more than one weight matrix or kernel (the head counts as part of the loss).
    L3: L1, a step keeps no tensor for a backward pass, and the update of a block changes weights of that
    block, and no other.

    Args:
        trainer: Any trainer, built or not; it is not changed.
        x: Samples, ``[B, ...]``.
        y: Labels, ``[B]``.

    Raises:
        AssertionError: if the trainer declares another level than it has shown, naming block and parameter.
    """
    probe = _probe(trainer, x, y)
    level = probe.locality
    if level not in LEVELS:
        raise AssertionError(f"{probe.id} declares locality {level!r}; expected one of {', '.join(LEVELS)}")
    if level == "L0":
        tutor = probe.tutor()
        if tutor is not None and not any(_learned(block.body) for _, block in _blocks(probe.cascade)):
            probe = _probe(tutor, x, y)
        _assert_global(probe, x, y)
        return
    assert_local(trainer, x, y)
    tutor = probe.tutor()
    if tutor is not None:
        own = _probe(tutor, x, y).locality
        if own < level:
            raise AssertionError(
                f"{probe.id} declares {level}, but its fronts are trained by {tutor.id}, which is {own}"
            )
        assert_locality(tutor, x, y)
    blocks = _blocks(probe.cascade)
    learning = [(name, block) for name, block in blocks if _learned(block.body)]
    if learning and learning == blocks[-1:] and blocks[-1][1].backward:
        raise AssertionError(
            f"{probe.id} declares {level}, but one block holds all weights that bodies learn, "
            f"{', '.join(_learned(blocks[-1][1].body))}: that is a global backward pass, L0"
        )
    if level == "L2":
        for name, block in learning:
            if len(_weights(block)) > 1:
                raise AssertionError(
                    f"{probe.id} declares L2, but the body of {name} has several layers with weights: "
                    f"{', '.join(_weights(block))}"
                )
    if level == "L3":
        _assert_no_autograd(probe, x, y)
        _assert_updates_stay_inside(_probe(trainer, x, y), x, y)


# ---- gradients of a step ---------------------------------------------------------------------------------


@contextmanager
def _watched(trainer: Trainer) -> Iterator[dict[str, Names]]:
    """Collect, by name of the optimizer that steps, the parameters of the cascade that have a gradient."""
    reached: dict[str, Names] = {}
    parameters = dict(trainer.cascade.named_parameters())

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        names = [name for name, known in trainer.optimizers.items() if known is optimizer]
        moved = _storages(p for p in _parameters(optimizer) if p.grad is not None)
        found = {n for n, p in parameters.items() if p.grad is not None or _storages([p]) <= moved}
        reached.setdefault(names[0] if names else "an unknown optimizer", set()).update(found)
        for name in found - _held(optimizer, parameters):
            # Nobody else clears what leaked, and it must not be laid at the next block's door.
            parameters[name].grad = None

    handle = register_optimizer_step_pre_hook(look)
    try:
        yield reached
    finally:
        handle.remove()


def _held(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> Names:
    held = _storages(_parameters(optimizer))
    return {name for name, p in parameters.items() if _storages([p]) <= held}


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _storages(parameters: Iterable[nn.Parameter]) -> set[int]:
    """Where the values lie: an optimizer may hold one tensor of which several parameters are parts."""
    return {p.untyped_storage().data_ptr() for p in parameters}


def _check_reached(cascade: Cascade, reached: Mapping[str, Names], where: str) -> None:
    owners: dict[str, tuple[str, nn.Module]] = {
        f"block{k}": (f"block {k + 1}", block) for k, block in enumerate(cascade.units)
    }
    owners |= {
        f"readout.{name}": (f"readout {name!r}", cascade.readout(name))
        for name in cascade.readouts
        if cascade.readout(name).learns
    }
    for key, (name, owner) in owners.items():
        if key not in reached:
            raise AssertionError(f"{name} took no step {where}: its optimizer was not called")
        if isinstance(owner, Block) and all(loss.one_pass for loss in owner.losses) and not reached[key]:
            continue  # it solves at the end of a pass, without gradients
        _check_one(name, reached[key], owner, cascade, where)
    fronts = [block.front for _, block in _blocks(cascade) if block.front is not None]
    fixed = {name for front in fronts for name in _names(cascade, front)}
    for key in sorted(reached.keys() - owners.keys()):
        if reached[key] - fixed or not fixed:
            raise AssertionError(f"{key} took a step {where}")


def _check_one(name: str, reached: Names, owner: nn.Module, cascade: Cascade, where: str) -> None:
    own = _names(cascade, owner)
    if reached - own:
        raise AssertionError(
            f"the loss of {name} sends a gradient to {', '.join(sorted(reached - own))} {where}"
        )
    if not reached & own and _learned(owner):
        raise AssertionError(f"the loss of {name} sends no gradient to any parameter of its own {where}")


def _inner_reach(trainer: Trainer, x: Tensor, y: Tensor) -> Iterator[tuple[str, Names, Block]]:
    """For each loss inside a block of blocks: its name, the parameters it reaches alone, and its block."""
    cascade = trainer.cascade
    parameters = dict(cascade.named_parameters())
    for k, (block, sensed, target, lesson) in enumerate(_inputs(trainer, x, y)):
        if not isinstance(block, JointBlock):
            continue
        for j, inner in enumerate(block.inner):
            losses, _ = block.objective(sensed, target, lesson)
            if losses[j].requires_grad:
                torch.autograd.backward(losses[j])
            found = {name for name, p in parameters.items() if p.grad is not None}
            cascade.zero_grad(set_to_none=True)
            yield f"block {k + 1}.{j + 1}", found, inner


def _inputs(trainer: Trainer, x: Tensor, y: Tensor) -> Iterator[tuple[Block, Any, Tensor, Tensor | None]]:
    """Each block, what its front answers to the rows below, the target and the lesson of one step."""
    cascade = trainer.cascade
    cascade.train()
    n_rows, n_classes = len(y), trainer.n_classes or 0
    generator = _seeds.generator(y.device, trainer.seed, "negatives", 0, 0)
    drawn = cascade.encoding.draw(y, generator, torch.zeros(n_rows, n_classes, device=y.device))
    rows: Rows
    rows, target = cascade.encoding.encode(x, y, drawn)
    lessons = descend(cascade.units, cascade.encoding.message())
    for block, lesson in zip(cascade.units, lessons, strict=True):
        rows = block.concat_feedback(rows, lesson)
        yield block, block.run_front(rows), target, lesson
        with torch.no_grad():
            rows = block.next_input(rows)


# ---- the levels ------------------------------------------------------------------------------------------


def _assert_global(probe: Trainer, x: Tensor, y: Tensor) -> None:
    cascade = probe.cascade
    inner = list(_inner_reach(probe, x, y))
    if inner:
        found = inner[-1][1]
    else:
        with _watched(probe) as reached:
            probe.step(x, y)
        found = reached.get(f"block{len(cascade.units) - 1}", set())
    bodies = [block.body for _, block in _blocks(cascade)]
    lowest = next((p for body in bodies for p in body.parameters() if p.requires_grad), None)
    if lowest is None:
        raise AssertionError(f"{probe.id} declares L0, but no body has weights to reach")
    missed = next(name for name, p in cascade.named_parameters() if p is lowest)
    if missed not in found:
        raise AssertionError(
            f"{probe.id} declares L0, a global backward pass, but the top loss sends no gradient to {missed}"
        )


def _assert_no_autograd(probe: Trainer, x: Tensor, y: Tensor) -> None:
    shapes: list[list[int]] = []

    def pack(tensor: Tensor) -> Tensor:
        shapes.append(list(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        probe.step(x, y)
    if shapes:
        raise AssertionError(
            f"{probe.id} declares L3, but a step keeps {len(shapes)} tensors for a backward pass, shaped "
            f"{', '.join(map(str, shapes[:3]))}"
        )


def _assert_updates_stay_inside(probe: Trainer, x: Tensor, y: Tensor) -> None:
    cascade = probe.cascade
    for k, (block, sensed, target, lesson) in enumerate(_inputs(probe, x, y)):
        before = {name: p.detach().clone() for name, p in cascade.named_parameters()}
        block.update(sensed, target, lesson)
        for loss in block.losses:
            loss.end_pass(None)
        changed = {name for name, p in cascade.named_parameters() if not torch.equal(p, before[name])}
        own = _names(cascade, block)
        if changed - own:
            raise AssertionError(f"the update of block {k + 1} changes {', '.join(sorted(changed - own))}")
        if not changed and _learned(block):
            raise AssertionError(f"the update of block {k + 1} changes none of its weights")


# ---- names -----------------------------------------------------------------------------------------------


def _probe(trainer: Trainer, x: Tensor, y: Tensor) -> Trainer:
    """A built copy of ``trainer``, silent, with new optimizers."""
    probe = trainer.clone()
    probe.progress = False
    # The samples are inputs of the model already.
    probe.scaling = None
    probe.build(x.shape[1:], trainer.n_classes or int(y.max()) + 1)
    probe._fit_labels_once(x, y)
    probe.reset_optimizers()
    return probe


def _blocks(cascade: Cascade) -> list[tuple[str, Block]]:
    """The blocks by name, those inside other blocks in their place."""
    found: list[tuple[str, Block]] = []
    for k, block in enumerate(cascade.units):
        if isinstance(block, JointBlock):
            found += [(f"block {k + 1}.{j + 1}", inner) for j, inner in enumerate(block.inner)]
        else:
            found.append((f"block {k + 1}", block))
    return found


def _names(cascade: Cascade, owner: nn.Module) -> Names:
    own = {id(p) for p in owner.parameters()}
    return {name for name, p in cascade.named_parameters() if id(p) in own}


def _weights(block: Block) -> list[str]:
    """Names of the weight matrices and kernels of the block's body, in the order of their use."""
    return [name for name, _ in weight_matrices(block.body)]


def _learned(module: nn.Module) -> list[str]:
    """Names of the parameters of ``module`` that are not frozen."""
    return [name for name, p in module.named_parameters() if p.requires_grad]
