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
from bpfree.trainers.optimizers import hyperparameters
from bpfree.trainers.run import Checkpoint, Position
from bpfree.trainers.settings import FitSettings

if TYPE_CHECKING:
    from bpfree.data import TensorData
    from bpfree.trainers.base import Trainer
    from bpfree.trainers.fitting import Fit


#: Keys of an identity whose values are digests, which tell nobody anything, and what they stand for.
DIGESTS = {
    "network": "the network is another",
    "train.content": "the training samples or labels are others",
    "validation.content": "the validation samples or labels are others",
}


def identity(
    trainer: Trainer, fit: FitSettings, train: TensorData, validation: TensorData | None
) -> dict[str, Any]:
    """What a run's files must agree on with the run that goes on from them, by name, as JSON holds it."""
    cascade = trainer.cascade
    shapes = [list(p.shape) for p in cascade.parameters()]
    found: dict[str, Any] = {"trainer": trainer.id, "seed": trainer.seed}
    found |= asdict(trainer.settings) | {f"fit.{name}": value for name, value in asdict(fit).items()}
    found["network"] = _digest([shapes, repr(cascade), str(trainer.dtype)])
    if frozen := [name for name, p in cascade.named_parameters() if not p.requires_grad]:
        found["frozen parameters"] = frozen
    for part, data in (("train", train), ("validation", validation)):
        *told, digest = [None] if data is None else data.content()
        names = ("name", "samples", "shape", "augment", "mean", "std")
        found |= {f"{part}.{name}": value for name, value in zip(names, told, strict=False)}
        found[f"{part}.content"] = digest
    for name, optimizer in trainer.replaced.items():
        found[f"optimizers.{name}"] = f"{type(optimizer).__name__} {hyperparameters(optimizer)}"
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def _digest(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def fingerprint(identity: Mapping[str, Any]) -> str:
    """An identity in short."""
    return _digest(identity)


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, str]:
    """In what two identities differ: by name, the sentence that says so."""
    names = [name for name in (*ours, *(theirs.keys() - ours)) if theirs.get(name) != ours.get(name)]
    return {
        name: DIGESTS.get(name) or f"{name} is {theirs.get(name)!r} there and {ours.get(name)!r} here"
        for name in names
    }


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
        "identity": run.identity,
        "position": position(run.at),
        "history": asdict(run.history),
        "carried": checkpoint.carried.state() if checkpoint.carried else None,
        "apparatus": run.measurements.state(tensors),
    }
    if isinstance(run.crew, Workers):
        state["groups"] = run.crew.groups
    if finished and run.end is not None:
        state["end"] = position(run.end)
        tensors |= ckpt.prefixed("last", run.last)
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
    finished = state["position"].get("stage", 0) == len(run.stages)
    extends = _check_identity(run, state, path, finished)
    whole = run.cascade.state_dict()
    model = ckpt.under("model", tensors)
    rest = {} if finished else {k: t for k, t in whole.items() if k not in _own(run, whole)}
    ckpt.load_module(run.cascade, rest | model, path)
    run.cascade.remember(ckpt.under("memory", tensors))
    for name, optimizer in run.optimizers.items():
        ckpt.load_optimizer(optimizer, ckpt.under(f"optimizer.{name}", tensors))
    own = ckpt.under(f"replica{run.crew.replica}", tensors)
    run.best, run.sums = ckpt.under("best", tensors), own.get("sums")
    run.at, run.history = Position(**state["position"]), History(**state["history"])
    run.history.name_metric(run.metric)
    if run.at.stage < len(run.stages) and run.gathers(run.stages[run.at.stage], any):
        # What was gathered in the pass is not in the file: the pass begins anew, and gathers the same.
        run.at.step, run.sums = 0, None
    if extends and finished:
        # The run goes on from its last epoch, not from its best.
        last = ckpt.under("last", tensors)
        run.best = {name: model[name] for name in last}
        run.cascade.load_state_dict(last, strict=False)
        run.at = Position(**state["end"])
        run.history.stages.pop()
    if checkpoint.carried is not None and state["carried"] is not None:
        checkpoint.carried.load(state["carried"])
    run.measurements.load(state["apparatus"], tensors)
    if isinstance(run.crew, Workers) and "groups" in state:
        run.crew.load(state["groups"], own)


def _check_identity(run: Fit, state: Mapping[str, Any], path: Path, finished: bool) -> bool:
    """Whether the run goes on for another number of epochs than it was begun with.

    Raises:
        BadValue: If it is another run, or cannot go on so.
    """
    if state["fingerprint"] == run.fingerprint:
        return False
    different = {"": "other settings, seed or data"}
    if "identity" in state:
        different = _differences(state["identity"], run.identity)
    remedy = "remove it, or name another file"
    if different.keys() != {"fit.epochs"}:
        raise BadValue(f"{path} belongs to another run ({'; '.join(different.values())}): {remedy}")
    reason = _fixed_epochs(run, state, finished)
    if reason:
        raise BadValue(f"{path} belongs to another run ({different['fit.epochs']}), and {reason}: {remedy}")
    return True


def _fixed_epochs(run: Fit, state: Mapping[str, Any], finished: bool) -> str:
    """Why a run cannot go on with another number of epochs as if it had been begun so; "" if it can."""
    before = state["identity"]["fit.epochs"]
    if run.settings.lr_schedule != "constant":
        return f"lr_schedule = {run.settings.lr_schedule!r} depends on the number of epochs"
    if isinstance(run.crew, Workers) or run.measurements:
        return "a run by several workers, or with devices, keeps its number of epochs"
    if finished and len(run.stages) == 1 and run.settings.schedule != "greedy" and "end" in state:
        at = state["end"]
    elif state["position"].get("stage", 0) == 0:
        at = state["position"]
    else:
        return f"its stages have trained for {before} epochs each"
    done = at["epoch"]
    if (done, at["step"]) > (run.fit.epochs, 0):
        return f"{done} epochs are done"
    if done == before and done % run.fit.eval_every and run.evaluator is not None:
        return f"its evaluation after epoch {done} is none of those every {run.fit.eval_every} epochs"
    return ""


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
