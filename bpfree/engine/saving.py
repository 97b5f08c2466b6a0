"""Saves the state of a run in files, and resumes a run from them."""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from glob import escape
from pathlib import Path

from bpfree._errors import BadValue
from bpfree._types import JsonMapping, JsonObject
from bpfree.distributed.workers import Workers
from bpfree.engine import checkpoint as ckpt
from bpfree.engine.history import History
from bpfree.engine.identity import differences
from bpfree.engine.run_state import Checkpoint, Position, RunState


def worker_path(path: Path, workers: Workers) -> Path:
    """The file of this worker's group of blocks, beside those of the others; ``path`` for a single worker."""
    return path.with_name(f"{path.name}.worker{workers.rank}of{workers.label}") if workers.label else path


def exists(checkpoint: Checkpoint | None, workers: Workers) -> bool:
    """Whether there is a run to resume.

    Raises:
        BadValue: If another number of workers began it.
    """
    if checkpoint is None:
        return False
    path = checkpoint.path
    labels = {p.name.rpartition("of")[2] for p in path.parent.glob(f"{escape(path.name)}.worker*of*")}
    labels = {label for label in labels if re.fullmatch(r"\d+(x\d+)?", label)} - {workers.label}
    if labels and not path.exists():
        raise BadValue(
            f"{path}: the run was begun by {labels.pop()} workers, not {workers.label or 1}: continue it "
            f"with as many, or remove {path.name}.worker*"
        )
    return path.exists() or worker_path(path, workers).exists()


def save(state: RunState, checkpoint: Checkpoint) -> None:
    """Write what is needed to continue the run.

    A worker among several writes its own blocks into a file of its own. Of replicas the first writes, with
    the tensors that differ between replicas. The finished run is the same for all workers, and the first
    writes it.
    """
    workers, finished = state.workers, state.finished
    if finished and not workers.is_first:
        return
    sums = {} if state.sums is None else {"sums": state.sums.cpu()}
    replicas = [] if finished else workers.gather_checkpoint(sums | workers.link_state())
    if workers.replica > 0:
        return
    model = state.cascade.state_dict()
    if not finished:
        others = state.other_workers_tensors()
        model = {name: tensor for name, tensor in model.items() if name not in others}
    tensors = ckpt.prefixed("model", model) | ckpt.prefixed("best", state.best)
    tensors |= ckpt.prefixed("memory", state.cascade.states())
    for name, optimizer in state.optimizers.items():
        tensors |= ckpt.prefixed(f"optimizer.{name}", ckpt.optimizer_tensors(optimizer))
    for number, replica in enumerate(replicas):
        tensors |= ckpt.prefixed(f"replica{number}", replica)
    values: JsonObject = {
        "fingerprint": state.fingerprint,
        "identity": state.identity,
        "position": _as_json(state.position),
        "history": asdict(state.history),
        "carried": checkpoint.carried.state() if checkpoint.carried else None,
        "apparatus": state.measurements.state(tensors),
    }
    if workers.groups:
        values["groups"] = workers.groups
    if finished and state.end is not None:
        values["end"] = _as_json(state.end)
        tensors |= ckpt.prefixed("last", state.last)
    ckpt.write(checkpoint.path if finished else worker_path(checkpoint.path, workers), tensors, values)


def _as_json(position: Position) -> JsonObject:
    return {name: value for name, value in asdict(position).items() if value != -math.inf}


def resume(state: RunState, checkpoint: Checkpoint) -> None:
    """Load what `save` wrote.

    Raises:
        BadValue: If it belongs to another run.
    """
    path = checkpoint.path
    path = path if path.exists() else worker_path(path, state.workers)
    tensors, values = ckpt.read(path, state.device)
    if "fingerprint" not in values:
        raise BadValue(f"{path} was written by Trainer.save, not by a run: name another file")
    finished = values["position"].get("stage", 0) == len(state.stages)
    more_epochs = _check_identity(state, values, path, finished)
    model = ckpt.under("model", tensors)
    # The file of a worker has the tensors of its own blocks alone.
    others = {} if finished else state.other_workers_tensors()
    ckpt.load_module(state.cascade, others | model, path)
    state.cascade.set_states(ckpt.under("memory", tensors))
    for name, optimizer in state.optimizers.items():
        ckpt.load_optimizer(optimizer, ckpt.under(f"optimizer.{name}", tensors))
    replica = ckpt.under(f"replica{state.workers.replica}", tensors)
    state.best, state.sums = ckpt.under("best", tensors), replica.get("sums")
    state.position, state.history = Position(**values["position"]), History(**values["history"])
    state.history.name_metric(state.metric)
    if not state.finished and state.one_pass(state.stages[state.position.stage], any):
        # The file does not contain the sums of a pass: the pass begins again, and computes the same.
        state.position.step, state.sums = 0, None
    if more_epochs and finished:
        # The run continues from its last epoch, not from its best.
        last = ckpt.under("last", tensors)
        state.best = {name: model[name] for name in last}
        state.cascade.load_state_dict(last, strict=False)
        state.position = Position(**values["end"])
        state.history.stages.pop()
    if checkpoint.carried is not None and values["carried"] is not None:
        checkpoint.carried.load(values["carried"])
    state.measurements.load(values["apparatus"], tensors)
    if "groups" in values:
        state.workers.load_link_state(values["groups"], replica)


def _check_identity(state: RunState, values: JsonMapping, path: Path, finished: bool) -> bool:
    """Whether the run continues with another number of epochs than it began with.

    Raises:
        BadValue: If it is another run, or cannot continue so.
    """
    if values["fingerprint"] == state.fingerprint:
        return False
    different = {"": "other settings, seed or data"}
    if "identity" in values:
        different = differences(values["identity"], state.identity)
    fix = "remove it, or name another file"
    if different.keys() != {"fit.epochs"}:
        raise BadValue(f"{path} belongs to another run ({'; '.join(different.values())}): {fix}")
    reason = _fixed_epochs(state, values, finished)
    if reason:
        raise BadValue(f"{path} belongs to another run ({different['fit.epochs']}), and {reason}: {fix}")
    return True


def _fixed_epochs(state: RunState, values: JsonMapping, finished: bool) -> str:
    """Why a run cannot continue with another number of epochs as if it had begun with it; "" if it can."""
    before = values["identity"]["fit.epochs"]
    if state.settings.lr_schedule != "constant":
        return f"lr_schedule = {state.settings.lr_schedule!r} depends on the number of epochs"
    if state.workers.several or state.measurements.has_devices:
        return "the number of epochs of a run with several workers, or with devices, cannot change"
    if finished and len(state.stages) == 1 and state.settings.schedule != "greedy" and "end" in values:
        position = values["end"]
    elif values["position"].get("stage", 0) == 0:
        position = values["position"]
    else:
        return f"its stages have trained for {before} epochs each"
    done = position["epoch"]
    if (done, position["step"]) > (state.fit.epochs, 0):
        return f"{done} epochs are done"
    if done == before and done % state.fit.eval_every and state.validated:
        return f"it was evaluated after epoch {done}, which is not a multiple of {state.fit.eval_every}"
    return ""


def agree(state: RunState, resumed: bool) -> list[int]:
    """Exchange the positions of all workers; returns the steps that each has taken.

    A worker that was stopped at the end of an epoch, while others went on, has the weights of that moment. It
    takes over the history of the others, and which evaluation was the best.

    Raises:
        BadValue: If some workers resume and others begin.
    """
    workers = state.workers
    mine = (resumed, state.index, _as_json(state.position), asdict(state.history))
    # The replicas of a group resume from the same file.
    all_states = workers.all_gather(mine)[: workers.size]
    missing = [k for k, (has_file, *_) in enumerate(all_states) if not has_file]
    if 0 < len(missing) < len(all_states):
        raise BadValue(
            f"worker {missing[0]} has no checkpoint while others resume from theirs: all need the same "
            "folder; remove the files of the run to begin again"
        )
    _, _, position, history = max(all_states, key=lambda one: (one[2]["stage"], one[2]["epoch"]))
    counts = {k: max(one[3][k] for one in all_states) for k in ("resumed", "replayed")}
    _catch_up(state, position, history | counts)
    return [index for _, index, *_ in all_states]


def _catch_up(state: RunState, position: JsonMapping, history: JsonObject) -> None:
    """Take over position and history of the worker that is the farthest."""
    state.history = History(**history)
    mine, ahead = state.position, Position(**position)
    if (ahead.stage, ahead.epoch) == (mine.stage, mine.epoch):
        return
    if ahead.stage == mine.stage and mine.step == state.n_steps and ahead.epoch == mine.epoch + 1:
        if ahead.best_epoch == ahead.epoch and state.fit.restore_best:
            stage = state.stages[mine.stage]
            state.best = {name: tensor.clone() for name, tensor in state.trained_tensors(stage)}
        ahead.step, state.position, state.sums = 0, ahead, None
        return
    raise BadValue(
        f"worker {state.workers.rank} is in epoch {mine.epoch + 1}, another in epoch {ahead.epoch + 1}: "
        "their checkpoints do not belong to one run; remove them to begin again"
    )


def remove_worker_files(state: RunState, checkpoint: Checkpoint) -> None:
    """Remove the files of the single workers, when the finished run is written."""
    # Wait for the first worker, which writes it.
    state.workers.all_gather(None)
    path = worker_path(checkpoint.path, state.workers)
    if path != checkpoint.path:
        path.unlink(missing_ok=True)
