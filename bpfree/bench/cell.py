"""Runs one cell in a process of its own: loads the data, trains, evaluates, and returns the row."""

from __future__ import annotations

import hashlib
import json
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from os import _exit
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bpfree import _seeds
from bpfree._errors import BadValue, DataNotFound, Diverged
from bpfree.bench.cells import Cell, config_of, id_of
from bpfree.bench.cost import measure
from bpfree.bench.devices import make_devices, report
from bpfree.bench.energy import TRAIN, CellEnergy, Window, metering
from bpfree.bench.environment import environment, git
from bpfree.bench.files import Mapped
from bpfree.bench.metric import describe
from bpfree.bench.results import SCHEMA, Row
from bpfree.core.cascade import Cascade
from bpfree.data import Splits, TensorData
from bpfree.meters import device_peak, process_peak_rss, reset_device_peak
from bpfree.nn import PhysicalFront, counted_modules, passes
from bpfree.physics import Device
from bpfree.trainers import Checkpoint, History, Hooks, Trainer
from bpfree.trainers.inputs import find_device

#: A function of a cell, its folder, the seconds between checkpoints and a progress callback; returns a row.
CellFunction = Callable[[Cell, Path, float, Callable[..., None]], Row]


def main(
    run_cell: CellFunction,
    record: Mapped,
    folder: str,
    checkpoint_s: float,
    pipe: Connection,
    lifeline: Connection,
) -> None:
    """Run a cell and send ``("row", row)``, or ``("refused", message)`` where a setting is bad.

    Before that, ``("progress", ...)`` may be sent any number of times. The process exits when ``lifeline``
    closes, that is, when the process that started it has ended.
    """
    # Ctrl-C reaches every process of the terminal; the process that started this cell handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with, args=(lifeline,), daemon=True).start()
    warnings.formatwarning = lambda message, *_, **__: f"{record['arm']}, seed {record['seed']}: {message}\n"
    try:
        cell = Cell.from_record(record)
        row = run_cell(cell, Path(folder), checkpoint_s, lambda *content: pipe.send(("progress", *content)))
    except (BadValue, DataNotFound) as error:
        pipe.send(("refused", str(error)))
    except Diverged as error:
        pipe.send(("row", failed(record, "diverged", str(error))))
    except (MemoryError, torch.OutOfMemoryError) as error:
        pipe.send(("row", failed(record, "oom", str(error) or type(error).__name__)))
    except Exception:  # noqa: BLE001 (any error of a cell becomes its row)
        pipe.send(("row", failed(record, "error", traceback.format_exc())))
    else:
        pipe.send(("row", row))


def check(records: Sequence[Mapped], pipe: Connection, lifeline: Connection) -> None:
    """Build the trainer of every cell without training it; send ``("refused", message)`` if one fails.

    A mistake in the last arm of a config is reported before the first arm trains.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with, args=(lifeline,), daemon=True).start()
    warnings.simplefilter("ignore")  # the cells warn themselves
    loaded: dict[str, Splits] = {}
    for record in records:
        try:
            cell, key = Cell.from_record(record), json.dumps([record["dataset"], record["device"]])
            device = open_device(cell)
            if key not in loaded:
                loaded[key] = load_data(cell, device)
            train = loaded[key].train
            make_trainer(cell, loaded[key], device).build_for(train)
        except (BadValue, DataNotFound) as error:
            pipe.send(("refused", f"{record['arm']}: {error}"))
            return


def _exit_with(lifeline: Connection) -> None:
    """Wait until ``lifeline`` closes, then exit."""
    try:
        lifeline.recv()
    except EOFError:
        _exit(1)


def failed(record: Mapped, status: str, reason: str) -> Row:
    """The row of a cell without a result."""
    return {**heading(record), "status": status, "reason": reason}


def heading(record: Mapped) -> Row:
    """The keys of every row: the cell, the environment and the source."""
    device_seed, tuning = record["device_seed"], record["tuning"]
    return {
        "schema": SCHEMA,
        "cell_id": id_of(record),
        "arm": record["arm"],
        "trainer": record["trainer"]["id"],
        "dataset": record["dataset"]["name"],
        "net": record["net"]["name"],
        "seed": record["seed"],
        **({} if device_seed is None else {"device_seed": device_seed}),
        "config": config_of(record),
        **({} if tuning is None else {"tuning": tuning}),
        "env": environment(torch.device(record["device"]), record["threads"]),
        "git": git(),
    }


def open_device(cell: Cell) -> torch.device:
    """Set the threads of this process for a cell, and find its device."""
    torch.set_num_threads(cell.threads)
    return _device(cell.device)


def run(cell: Cell, folder: Path, checkpoint_s: float, progress: Callable[..., None]) -> Row:
    """Train and measure a cell; its weights and, while it runs, its checkpoint are in ``folder``.

    ``progress`` is called with the number of finished epochs and their total.
    """
    device = open_device(cell)
    with metering(cell.energy, device) as energy:
        return _measured(cell, folder, checkpoint_s, progress, device, energy)


def _measured(
    cell: Cell,
    folder: Path,
    checkpoint_s: float,
    progress: Callable[..., None],
    device: torch.device,
    energy: CellEnergy,
) -> Row:
    with energy.meter("load"):
        data = load_data(cell, device)
    cost = measure(lambda: _without_devices(make_trainer(cell, data, device, compile=None)), data, cell.fit)
    trainer = make_trainer(cell, data, device)
    checkpoint = Checkpoint(folder / "checkpoint.safetensors", checkpoint_s, energy.meter)
    history, peak = _train(cell, data, trainer, checkpoint, progress, energy)
    rows_sent = passes(trainer.net)
    with energy.meter("test"):
        test = trainer.evaluate(data.test)
        validation = trainer.evaluate(data.validation)
    trainer.save(folder / "model.safetensors")
    checkpoint.path.unlink(missing_ok=True)
    metered = energy.row(history.resumed > 0)
    flops, metric = cost.flops(history, len(data.train)), trainer.metric
    targets = trainer.cascade.encoding.metric_targets(data.test)
    chance = None if metric.chance is None else metric.chance(targets)
    return {
        **heading(cell.record()),
        "status": "ok",
        "locality": trainer.locality,
        "method": _method(cell, trainer.cascade),
        "metrics": {
            **describe(metric),
            f"test_{metric.name}": test[metric.name],
            f"val_{metric.name}": validation[metric.name],
            "loss": history.rows[-1]["loss"],
            "readouts": test["readouts"],
            "blocks": test["blocks"],
            **({} if chance is None else {"chance": chance}),
        },
        "time": energy.seconds(),
        "memory": {**cost.memory, **peak, "rss": process_peak_rss()},
        "flops": flops,
        "budget": _budget(cell, data.train, history),
        "segments": history.resumed + 1,
        "weights_sha256": _hash(trainer),
        "curve": _curve(history, trainer.cascade.headline, energy.has_curve(metered)),
        **metered,
        **_of_devices(cell, devices_of(trainer.net), rows_sent, flops["train_total"]),
    }


def _train(
    cell: Cell,
    data: Splits,
    trainer: Trainer,
    checkpoint: Checkpoint,
    progress: Callable[[int, int], None],
    energy: CellEnergy,
) -> tuple[History, dict[str, int]]:
    """Train inside an energy measurement; returns the history and the device's memory peaks."""

    def fresh() -> Trainer:
        return make_trainer(cell, data, energy.meter.device)

    def show(done: int, of: int, row: Mapped) -> None:
        row["train_s"], joules = energy.meter.state()[TRAIN]["seconds"], energy.joules()
        if joules is not None:
            row["train_j"] = joules
        progress(done, of)

    def warm_up() -> None:
        batch, n = cell.fit.batch_size, len(data.train)
        # A compiler compiles the last, shorter batch separately.
        subset = data.train.take(torch.arange(min(50, n // batch) * batch + n % batch))
        fresh().fit(subset, **asdict(replace(cell.fit, epochs=1, patience=None)))

    def again(window: Window) -> None:
        fresh().fit(data.train, data.validation, hooks=Hooks(window), **fit)

    hooks, fit = Hooks(energy.meter, show), asdict(cell.fit)
    cold = cell.trainer.settings.compile is not None or energy.meter.device.type != "cpu"
    with energy.measured(warm_up, again, cold):
        reset_device_peak(energy.meter.device)
        history = trainer.fit(data.train, data.validation, checkpoint=checkpoint, hooks=hooks, **fit)
        peak = device_peak(energy.meter.device)
    return history, peak


def _method(cell: Cell, cascade: Cascade) -> Row:
    """Encoding, objective, schedule and readout; and the mode of batch normalization in fronts, if any."""
    fronts = [module for block in cascade.units if block.front for module in block.front.modules()]
    normalized = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in fronts)
    return {
        "encoding": type(cascade.encoding).__name__,
        "objective": list(dict.fromkeys(type(loss).__name__ for loss in cascade.losses)),
        "schedule": cell.trainer.settings.schedule,
        "readout": cascade.headline,
    } | ({"bn_mode": "calibrated"} if normalized else {})


def _of_devices(cell: Cell, devices: Sequence[Device | None], rows_sent: dict[str, int], flops: float) -> Row:
    """The section ``physics`` of a row; empty for a net without devices."""
    return {} if cell.physics is None else {"physics": report(cell.physics, devices, rows_sent, flops)}


def _without_devices(trainer: Trainer) -> Trainer:
    """The trainer with fronts that call no device: devices are not part of the counted cost."""
    for module in counted_modules(trainer.net):
        module.infer_shapes = True
    return trainer


def devices_of(net: torch.nn.Module) -> list[Device | None]:
    """The devices in a network by layer, None for a layer without one."""
    return [m.physical_device for m in net.modules() if isinstance(m, PhysicalFront)]


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadValue(f"device = {name!r}: unknown; for example cpu or cuda") from None
    if device.type != "cuda":
        return find_device(device)
    if not torch.cuda.is_available():
        raise BadValue(f"device = {name!r}: this machine has no usable CUDA device")
    return device


def load_data(cell: Cell, device: torch.device) -> Splits:
    """The cell's data."""
    return cell.dataset.load(cell.seed, device)


def make_trainer(cell: Cell, data: Splits, device: torch.device, **changes: Any) -> Trainer:
    """The cell's trainer with a newly initialized net; ``changes`` replace some of its settings."""
    torch.manual_seed(_seeds.derive(cell.seed, "net"))
    devices: Sequence[Device | None] = ()
    if cell.physics is not None:
        assert cell.device_seed is not None
        devices = make_devices(cell.physics, cell.net.n_devices, cell.device_seed, cell.seed)
    net = cell.net.build(data.train.sample_shape, data.train.n_classes, devices)
    return cell.trainer.make(net, cell.seed, device, **changes)


def _budget(cell: Cell, train: TensorData, history: History) -> Row:
    epochs = [stage["epochs"] for stage in history.stages]
    steps = cell.fit.steps(len(train))
    return {
        "passes": sum(epochs),
        "steps": sum(epochs) * steps,
        "updates_per_weight": max(epochs) * steps,
        "stages": len(epochs),
        "capped_stages": sum(epoch == cell.fit.epochs for epoch in epochs),
    }


def _curve(history: History, headline: str, joules: bool) -> list[list[float]]:
    """``[step, validation metric, training seconds, training joules if metered]`` of each evaluation."""
    rows = [row for row in history.rows if headline in row.get("validation", {})]
    return [
        [row["step"], row["validation"][headline], round(row["train_s"], 4)]
        + ([round(row["train_j"], 3)] if joules else [])
        for row in rows
    ]


def _hash(trainer: Trainer) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(trainer.cascade.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
