"""A run's state in files: written while it goes on, and taken up by a run that goes on from there."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bpfree._errors import BadValue
from bpfree.schedules import Crew, Stage, Workers
from bpfree.trainers import checkpoint as ckpt
from bpfree.trainers.history import History
from bpfree.trainers.run import Checkpoint, Position
from bpfree.trainers.settings import FitSettings

if TYPE_CHECKING:
    from bpfree.data import TensorData
    from bpfree.trainers.base import Trainer
    from bpfree.trainers.fitting import Fit


def fingerprint(trainer: Trainer, fit: FitSettings, *data: TensorData | None) -> str:
    """What a run's files must agree on with the run that goes on from them."""
    cascade = trainer.cascade
    shapes = [list(p.shape) for p in cascade.parameters()]
    seen = [None if d is None else d.content() for d in data]
    settings = [asdict(trainer.settings), asdict(fit)]
    parts = [trainer.id, *settings, trainer.seed, shapes, repr(cascade), seen]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def own_path(path: Path, crew: Crew) -> Path:
    """The file of this worker and its replicas, beside the others'; of one worker alone it is ``path``."""
    return path.with_name(f"{path.name}.worker{crew.rank}of{crew.label}") if crew.label else path


def begun(checkpoint: Checkpoint | None, crew: Crew) -> bool:
    """Whether there is a run to go on with.

    Raises:
        BadValue: If it was begun by another number of workers.
    """
    if checkpoint is None:
        return False
    path = checkpoint.path
    others = {p.name.rpartition("of")[2] for p in path.parent.glob(f"{escape(path.name)}.worker*of*")}
    others = {n for n in others if re.fullmatch(r"\d+(x\d+)?", n)} - {crew.label}
    if others and not path.exists():
        raise BadValue(
            f"{path}: the run was begun by {others.pop()} workers, not {crew.label or 1}: go on with as "
            f"many, or remove {path.name}.worker*"
        )
    return path.exists() or own_path(path, crew).exists()


def save(run: Fit, checkpoint: Checkpoint) -> None:
    """Write what the run needs to go on.

    A worker among several writes its own blocks into its own file; of replicas, the first does, and puts what
    differs between them beside one another. The finished run, which all hold whole, is written by the first.
    """
    finished = run.at.stage == len(run.stages)
    if finished and not run.crew.leads:
        return
    sums = {} if run.sums is None else {"sums": run.sums.cpu()}
    apart = [] if finished else run.crew.gathered(sums | run.crew.state())
    if run.crew.replica > 0:
        return
    model = run.cascade.state_dict() if finished else _own(run, run.cascade.state_dict())
    tensors = ckpt.prefixed("model", model) | ckpt.prefixed("best", run.best)
    tensors |= ckpt.prefixed("memory", run.cascade.memories())
    for name, optimizer in run.optimizers.items():
        tensors |= ckpt.prefixed(f"optimizer.{name}", ckpt.optimizer_tensors(optimizer))
    for number, own in enumerate(apart):
        tensors |= ckpt.prefixed(f"replica{number}", own)
    state: dict[str, Any] = {
        "fingerprint": run.fingerprint,
        "position": position(run.at),
        "history": asdict(run.history),
        "carried": checkpoint.carried.state() if checkpoint.carried else None,
        "apparatus": run.measurements.state(tensors),
    }
    if isinstance(run.crew, Workers):
        state["groups"] = run.crew.groups
    ckpt.write(checkpoint.path if finished else own_path(checkpoint.path, run.crew), tensors, state)


def _own(run: Fit, state: ckpt.Tensors) -> ckpt.Tensors:
    """What of the cascade's state is this worker's: without the blocks of others."""
    n = len(run.cascade.units)
    first, stop = run.crew.share(0, n)
    others = tuple(f"blocks.{k}." for k in range(n) if not first <= k < stop)
    return {name: tensor for name, tensor in state.items() if not name.startswith(others)}


def changing(run: Fit, stage: Stage) -> Iterator[tuple[str, Tensor]]:
    """The state that a stage changes: of this worker's blocks but for their fronts, and of readouts."""
    first, stop = run.crew.share(stage.first, stage.stop)
    blocks = {f"blocks.{k}.": f"blocks.{k}.front." for k in range(first, stop)}
    parts = blocks | {f"readouts.{name}.": " " for name, _ in run.learning(stage)}
    for name, tensor in run.cascade.state_dict().items():
        if any(name.startswith(part) and not name.startswith(fixed) for part, fixed in parts.items()):
            yield name, tensor


def position(at: Position) -> dict[str, Any]:
    """As JSON."""
    return {k: v for k, v in asdict(at).items() if v != -math.inf}


def resume(run: Fit, checkpoint: Checkpoint) -> None:
    """Take up what `save` wrote.

    Raises:
        BadValue: If it is of another run.
    """
    path = checkpoint.path
    path = path if path.exists() else own_path(path, run.crew)
    tensors, state = ckpt.read(path, run.train.y.device)
    if "fingerprint" not in state:
        raise BadValue(f"{path} was written by Trainer.save, not by a run: name another file")
    if state["fingerprint"] != run.fingerprint:
        raise BadValue(
            f"{path} belongs to another run (other settings, seed or data): remove it, or name another file"
        )
    whole = run.cascade.state_dict()
    model = ckpt.under("model", tensors)
    finished = state["position"].get("stage", 0) == len(run.stages)
    rest = {} if finished else {k: t for k, t in whole.items() if k not in _own(run, whole)}
    ckpt.load_module(run.cascade, rest | model, path)
    run.cascade.remember(ckpt.under("memory", tensors))
    for name, optimizer in run.optimizers.items():
        ckpt.load_optimizer(optimizer, ckpt.under(f"optimizer.{name}", tensors))
    own = ckpt.under(f"replica{run.crew.replica}", tensors)
    run.best, run.sums = ckpt.under("best", tensors), own.get("sums")
    run.at, run.history = Position(**state["position"]), History(**state["history"])
    if run.at.stage < len(run.stages) and run.gathers(run.stages[run.at.stage], any):
        # What was gathered in the pass is not in the file: the pass begins anew, and gathers the same.
        run.at.step, run.sums = 0, None
    if checkpoint.carried is not None and state["carried"] is not None:
        checkpoint.carried.load(state["carried"])
    run.measurements.load(state["apparatus"], tensors)
    if isinstance(run.crew, Workers) and "groups" in state:
        run.crew.load(state["groups"], own)


def agree(run: Fit, resumed: bool) -> list[int]:
    """Let the workers tell one another where they stand; returns the steps that each has taken.

    One that was stopped at a cut which others have passed holds the weights that it had there, and takes over
    what they know: the history, and which evaluation was the best.

    Raises:
        BadValue: If some have begun and others have not.
    """
    if not isinstance(run.crew, Workers):
        return [run.index]
    words = run.crew.gather((resumed, run.index, position(run.at), asdict(run.history)))
    # The replicas of a group go on from the same file.
    words = words[: run.crew.size]
    missing = [k for k, word in enumerate(words) if not word[0]]
    if 0 < len(missing) < len(words):
        raise BadValue(
            f"worker {missing[0]} has no checkpoint while others go on from theirs: all need the same "
            "folder; remove the files of the run to begin anew"
        )
    first = max(words, key=lambda word: (word[2]["stage"], word[2]["epoch"]))
    _follow(run, first[2], first[3] | {k: max(word[3][k] for word in words) for k in ("resumed", "replayed")})
    return [word[1] for word in words]


def _follow(run: Fit, at: Mapping[str, Any], history: dict[str, Any]) -> None:
    run.history = History(**history)
    if (at["stage"], at["epoch"]) == (run.at.stage, run.at.epoch):
        return
    ahead = Position(**at)
    if ahead.stage == run.at.stage and run.at.step == run.n_steps and ahead.epoch == run.at.epoch + 1:
        if ahead.best_epoch == ahead.epoch and run.fit.restore_best:
            run.best = {name: tensor.clone() for name, tensor in changing(run, run.stages[run.at.stage])}
        ahead.step, run.at, run.sums = 0, ahead, None
        return
    raise BadValue(
        f"worker {run.crew.rank} stands in epoch {run.at.epoch + 1}, another in epoch {ahead.epoch + 1}: "
        "their checkpoints are not of one run; remove them to begin anew"
    )


def clear(run: Fit, checkpoint: Checkpoint) -> None:
    """Remove the workers' own files, when the finished run is written."""
    if isinstance(run.crew, Workers):
        run.crew.gather(None)
        own_path(checkpoint.path, run.crew).unlink(missing_ok=True)
