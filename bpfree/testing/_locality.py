"""Checks of locality: the parameters that the gradient of each loss reaches, and the declared level."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from bpfree import _seeds
from bpfree._rows import Rows
from bpfree.core.block import BaseBlock, Block, send_feedback
from bpfree.core.cascade import Cascade
from bpfree.core.sharing import separate_parts, shared_weights
from bpfree.nn.weights import weight_matrices
from bpfree.trainers import LEVELS, Trainer

Names = set[str]


def assert_local(trainer: Trainer, x: Tensor, y: Tensor) -> None:
    """Check that no gradient crosses a block boundary during training.

    A copy of the trainer takes steps on one batch, in `Trainer.fit` and by `Trainer.step`. Before each step
    of an optimizer all parameters of the cascade are checked. In the step of block k, some parameters of
    block k must have a gradient, and no parameter outside it may have one, including fronts and losses of
    other blocks. In the step of a readout with parameters, no parameter of a block may have a gradient. If a
    block contains several blocks, the gradient of each inner loss is checked separately. If a trainer trains
    the fronts before the run (`Trainer.front_trainer`), it is checked as well, and it may step fronts only.

    Args:
        trainer: A trainer, built or not. It is not modified.
        x: Samples, ``[B, ...]``.
        y: Labels, ``[B]``.

    Raises:
        AssertionError: If a gradient crosses a boundary, or a loss has no gradient. The message names the
            block and the parameters.
    """
    probe = _probe(trainer, x, y)
    for one, other in shared_weights(separate_parts(probe.cascade)):
        raise AssertionError(f"{one.name} and {other.name} share a weight, but are updated separately")
    with _collect_gradients(probe) as reached, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class may be missing in a batch
        probe.fit(probe.data_of(x, y), epochs=1, batch_size=len(x))
    _check_reached(probe.cascade, reached, "in fit")
    probe = _probe(trainer, x, y)
    with _collect_gradients(probe) as reached:
        probe.step(x, y)
    _check_reached(probe.cascade, reached, "in step")
    for name, parameters, inner in _inner_gradients(probe, x, y):
        _check_one(name, parameters, inner, probe.cascade, "in one backward pass")
    front_trainer = probe.front_trainer()
    if front_trainer is not None:
        assert_local(front_trainer, x, y)


def assert_locality(trainer: Trainer, x: Tensor, y: Tensor) -> None:
    """Check the level of locality that ``trainer.locality`` declares, a key of `bpfree.trainers.LEVELS`.

    - L0: the gradient of the top loss reaches the lowest layer with trainable parameters.
    - L1: `assert_local`, and not all trainable layers are in one block, because that is backpropagation.
    - L2: L1, and no trainable body has more than one weight matrix or kernel (the head is part of the loss).
    - L3: L1, a step saves no tensor for a backward pass, and the update of a block changes only parameters of
      that block.

    Args:
        trainer: A trainer, built or not. It is not modified.
        x: Samples, ``[B, ...]``.
        y: Labels, ``[B]``.

    Raises:
        AssertionError: If the declared level is wrong. The message names the block and the parameter.
    """
    probe = _probe(trainer, x, y)
    level = probe.locality
    if level not in LEVELS:
        raise AssertionError(f"{probe.id} declares locality {level!r}; expected one of {', '.join(LEVELS)}")
    if level == "L0":
        front_trainer = probe.front_trainer()
        trains_bodies = any(_trainable(block.body) for _, block in _blocks(probe.cascade))
        if front_trainer is not None and not trains_bodies:
            probe = _probe(front_trainer, x, y)
        _assert_global(probe, x, y)
        return
    assert_local(trainer, x, y)
    front_trainer = probe.front_trainer()
    if front_trainer is not None:
        front_level = _probe(front_trainer, x, y).locality
        if front_level < level:
            raise AssertionError(
                f"{probe.id} declares {level}, but its fronts are trained by {front_trainer.id}, which "
                f"declares {front_level}"
            )
        assert_locality(front_trainer, x, y)
    blocks = _blocks(probe.cascade)
    trainable = [(name, block) for name, block in blocks if _trainable(block.body)]
    if trainable and trainable == blocks[-1:] and blocks[-1][1].rule.through_body:
        raise AssertionError(
            f"{probe.id} declares {level}, but all trainable parameters of bodies are in one block "
            f"({', '.join(_trainable(blocks[-1][1].body))}), which is a global backward pass, L0"
        )
    if level == "L2":
        for name, block in trainable:
            if len(_weights(block)) > 1:
                raise AssertionError(
                    f"{probe.id} declares L2, but the body of {name} has several layers with weights: "
                    f"{', '.join(_weights(block))}"
                )
    if level == "L3":
        _assert_no_autograd(probe, x, y)
        _assert_updates_are_local(_probe(trainer, x, y), x, y)


# ---- gradients of a step ---------------------------------------------------------------------------------


@contextmanager
def _collect_gradients(trainer: Trainer) -> Iterator[dict[str, Names]]:
    """Collect the names of the parameters with a gradient, by the name of the optimizer that steps."""
    reached: dict[str, Names] = {}
    parameters = dict(trainer.cascade.named_parameters())

    def collect(optimizer: torch.optim.Optimizer, *_: object) -> None:
        names = [name for name, known in trainer.optimizers.items() if known is optimizer]
        updated = _storages(p for p in _parameters(optimizer) if p.grad is not None)
        with_gradient = {n for n, p in parameters.items() if p.grad is not None or _storages([p]) <= updated}
        reached.setdefault(names[0] if names else "an unknown optimizer", set()).update(with_gradient)
        for name in with_gradient - _names_of(optimizer, parameters):
            # No optimizer clears this gradient, and it must not be attributed to the next block.
            parameters[name].grad = None

    handle = register_optimizer_step_pre_hook(collect)
    try:
        yield reached
    finally:
        handle.remove()


def _names_of(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> Names:
    """Names of the parameters that the optimizer updates."""
    storages = _storages(_parameters(optimizer))
    return {name for name, p in parameters.items() if _storages([p]) <= storages}


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _storages(parameters: Iterable[nn.Parameter]) -> set[int]:
    """Addresses of the storages: several parameters may be views of one tensor of an optimizer."""
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
            raise AssertionError(f"the optimizer of {name} took no step {where}")
        if isinstance(owner, BaseBlock) and owner.rule.one_pass and not reached[key]:
            continue  # a one-pass solve has no gradients
        _check_one(name, reached[key], owner, cascade, where)
    fronts = [block.front for _, block in _blocks(cascade) if block.front is not None]
    fixed = {name for front in fronts for name in _names(cascade, front)}
    for key in sorted(reached.keys() - owners.keys()):
        if reached[key] - fixed or not fixed:
            raise AssertionError(f"the optimizer {key} took a step {where}, but belongs to no block")


def _check_one(name: str, reached: Names, owner: nn.Module, cascade: Cascade, where: str) -> None:
    allowed = _names(cascade, owner)
    if reached - allowed:
        raise AssertionError(
            f"the gradient of the loss of {name} reaches {', '.join(sorted(reached - allowed))} {where}"
        )
    if not reached & allowed and _trainable(owner):
        raise AssertionError(f"the gradient of the loss of {name} reaches no parameter of {name} {where}")


def _inner_gradients(trainer: Trainer, x: Tensor, y: Tensor) -> Iterator[tuple[str, Names, Block]]:
    """For each inner loss of a joint block: its name, the parameters that its gradient reaches, its block."""
    cascade = trainer.cascade
    parameters = dict(cascade.named_parameters())
    for k, (block, body_input, target, feedback) in enumerate(_inputs(trainer, x, y)):
        if block.parts == [block]:
            continue
        for j, inner in enumerate(block.parts):
            losses, _, _ = block.objective(body_input, target, feedback)
            if losses[j].requires_grad:
                torch.autograd.backward(losses[j])
            reached = {name for name, p in parameters.items() if p.grad is not None}
            cascade.zero_grad(set_to_none=True)
            yield f"block {k + 1}.{j + 1}", reached, inner


def _inputs(
    trainer: Trainer, x: Tensor, y: Tensor
) -> Iterator[tuple[BaseBlock, Rows, Tensor, Tensor | None]]:
    """Each block with the input of its body, the target and the feedback of one step."""
    cascade = trainer.cascade
    cascade.train()
    n_rows, n_classes = len(y), trainer.n_classes or 0
    generator = _seeds.generator(y.device, trainer.seed, "negatives", 0, 0)
    drawn = cascade.encoding.draw(y, generator, torch.zeros(n_rows, n_classes, device=y.device))
    rows: Rows
    rows, target = cascade.encoding.encode(x, y, drawn)
    feedbacks, _ = send_feedback(cascade.units, cascade.encoding.message())
    for block, feedback in zip(cascade.units, feedbacks, strict=True):
        rows = block.concat_feedback(rows, feedback)
        yield block, block.run_front(rows), target, feedback
        with torch.no_grad():
            rows = block.next_input(rows)


# ---- the levels ------------------------------------------------------------------------------------------


def _assert_global(probe: Trainer, x: Tensor, y: Tensor) -> None:
    cascade = probe.cascade
    inner = list(_inner_gradients(probe, x, y))
    if inner:
        names = inner[-1][1]
    else:
        with _collect_gradients(probe) as reached:
            probe.step(x, y)
        names = reached.get(f"block{len(cascade.units) - 1}", set())
    bodies = [block.body for _, block in _blocks(cascade)]
    lowest = next((p for body in bodies for p in body.parameters() if p.requires_grad), None)
    if lowest is None:
        raise AssertionError(f"{probe.id} declares L0, but no body has trainable parameters")
    lowest_name = next(name for name, p in cascade.named_parameters() if p is lowest)
    if lowest_name not in names:
        raise AssertionError(
            f"{probe.id} declares L0, a global backward pass, but the gradient of the top loss does not "
            f"reach {lowest_name}"
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
            f"{probe.id} declares L3, but a step saves {len(shapes)} tensors for a backward pass, of shapes "
            f"{', '.join(map(str, shapes[:3]))}"
        )


def _assert_updates_are_local(probe: Trainer, x: Tensor, y: Tensor) -> None:
    cascade = probe.cascade
    for k, (block, body_input, target, feedback) in enumerate(_inputs(probe, x, y)):
        before = {name: p.detach().clone() for name, p in cascade.named_parameters()}
        block.update(body_input, target, feedback)
        block.rule.end_epoch(block, None)
        changed = {name for name, p in cascade.named_parameters() if not torch.equal(p, before[name])}
        allowed = _names(cascade, block)
        if changed - allowed:
            raise AssertionError(
                f"the update of block {k + 1} changes {', '.join(sorted(changed - allowed))}"
            )
        if not changed and _trainable(block):
            raise AssertionError(f"the update of block {k + 1} changes none of its parameters")


# ---- names -----------------------------------------------------------------------------------------------


def _probe(trainer: Trainer, x: Tensor, y: Tensor) -> Trainer:
    """A built copy of ``trainer`` with new optimizers and without progress output."""
    probe = trainer.clone()
    probe.progress = False
    # The samples are already scaled.
    probe.scaling = None
    probe.build(x.shape[1:], trainer.n_classes or int(y.max()) + 1)
    probe._fit_labels_once(x, y)
    probe.reset_optimizers()
    return probe


def _blocks(cascade: Cascade) -> list[tuple[str, Block]]:
    """Blocks with their names; joint blocks are replaced by their inner blocks."""
    blocks: list[tuple[str, Block]] = []
    for k, block in enumerate(cascade.units):
        if block.parts == [block]:
            blocks += [(f"block {k + 1}", part) for part in block.parts]
        else:
            blocks += [(f"block {k + 1}.{j + 1}", part) for j, part in enumerate(block.parts)]
    return blocks


def _names(cascade: Cascade, owner: nn.Module) -> Names:
    """Names in the cascade of the parameters of ``owner``."""
    parameters = {id(p) for p in owner.parameters()}
    return {name for name, p in cascade.named_parameters() if id(p) in parameters}


def _weights(block: Block) -> list[str]:
    """Names of the weight matrices and kernels of the block's body."""
    return [name for name, _ in weight_matrices(block.body)]


def _trainable(module: nn.Module) -> list[str]:
    """Names of the parameters of ``module`` that require a gradient."""
    return [name for name, p in module.named_parameters() if p.requires_grad]
