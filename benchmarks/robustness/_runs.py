"""Short trainings of every trainer under every schedule, for `same_bits`; run as a script at one revision.

The script uses the public interface alone, so that the same file runs at an older and at a newer revision.
Public names that differ between revisions are listed in `NAMES`, `SETTINGS` and `METRICS`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bpfree
from bpfree import BpfreeError, Checkpoint, Hooks, get_trainer
from bpfree.data import GraphData, TensorData
from bpfree.nn import GNN, cafo_cnn, cnn, mlp, physical_net
from bpfree.trainers import TRAINERS

#: Where each name is, or was: the first one that exists is used.
NAMES = {
    "Graph": ("bpfree.graphs:Graph", "bpfree.graphs.graph:Graph", "bpfree.graph:Graph"),
    "Device": ("bpfree.physics:Device",),
    "MultimodeFibre": ("bpfree.physics:MultimodeFiber", "bpfree.physics:MultimodeFibre"),
}

#: The new key of each setting that was renamed; it is used where the old one is refused.
SETTINGS = {"gradients": "update_rule"}

#: Keys under which a trainer's `evaluate` returns the value of its metric.
METRICS = ("accuracy", "roc_auc")

#: Under its present name, or that of 0.1.

EPOCHS = 2

#: Samples for training, validation and prediction.
N_TRAIN, N_VALIDATION, N_TEST = 320, 96, 96


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: Name in the comparison.
        trainer: Id of the trainer.
        net: Key of `NETS`.
        data: Key of `DATA`.
        settings: Settings of the trainer.
        fit: Settings of `fit`.
        resumed: Whether it is stopped after its first epoch, and resumed from its checkpoint.
        workers: Number of processes; 1 is this one.
    """

    name: str
    trainer: str
    net: str = "mlp"
    data: str = "digits"
    settings: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)
    resumed: bool = False
    workers: int = 1


# ---- names that differ between revisions -------------------------------------------------------------------


def public(name: str) -> Any:
    """The object of that name, wherever this revision has it."""
    for path in NAMES[name]:
        module, _, attribute = path.partition(":")
        with suppress(ImportError, AttributeError):
            return getattr(importlib.import_module(module), attribute)
    raise SystemExit(f"{bpfree.__file__}: has none of {', '.join(NAMES[name])}: add the new name to NAMES")


def spellings(settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The settings by their old and by their new keys."""
    yield dict(settings)
    if settings.keys() & SETTINGS.keys():
        yield {SETTINGS.get(key, key): value for key, value in settings.items()}


# ---- data --------------------------------------------------------------------------------------------------


def _take(data: Any, n: int) -> Any:
    return data.take(torch.arange(min(n, len(data))))


@cache
def _digits() -> tuple[Any, Any, Any]:
    splits = bpfree.data.load("digits")
    return _take(splits.train, N_TRAIN), _take(splits.validation, N_VALIDATION), _take(splits.test, N_TEST)


@cache
def _padded_digits() -> tuple[Any, Any, Any]:
    """Digits with two empty rows above: the first pixels are constant, as in MNIST."""

    def pad(data: Any) -> Any:
        return TensorData(nn.functional.pad(data.x, (0, 0, 2, 0)), data.y, data.n_classes)

    train, validation, test = map(pad, _digits())
    return train, validation, test


@cache
def _photographs() -> tuple[Any, Any, Any]:
    """Random color images of 32 x 32 pixels."""
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> Any:
        x = torch.rand(n, 3, 32, 32, generator=generator)
        return TensorData(x, torch.arange(n) % 10, 10)

    return draw(40), draw(20), draw(20)


@cache
def _graph() -> tuple[Any, Any, Any]:
    splits = bpfree.data.load_graph("digits_graph")
    return splits.train, splits.validation, splits.test


@cache
def _links() -> tuple[Any, Any, Any]:
    """Edges of a random graph, and pairs of nodes without an edge."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(60, 12, generator=generator)
    edges = torch.randint(60, (2, 180), generator=generator)
    edges = torch.unique(torch.cat([edges, edges.flip(0)], 1), dim=1)
    edges = edges[:, edges[0] != edges[1]]
    ends = edges.T[torch.randperm(edges.shape[1], generator=generator)[:40]]
    others = torch.randint(60, (40, 2), generator=generator)
    ids, y = torch.cat([ends, others]), (torch.arange(80) < 40).long()
    parts = [torch.arange(k, 80, 4) for k in range(4)]
    train = torch.cat(parts[:2])
    graph = public("Graph")(edges, 60)

    def part(rows: Any) -> Any:
        return GraphData(x, graph, ids[rows], y[rows], 2)

    return part(train), part(parts[2]), part(parts[3])


DATA: dict[str, Callable[[], tuple[Any, Any, Any]]] = {
    "digits": _digits,
    "padded": _padded_digits,
    "photographs": _photographs,
    "graph": _graph,
    "links": _links,
}

# ---- networks ----------------------------------------------------------------------------------------------


def _mlp(*hidden: int, **options: Any) -> Callable[[Any], nn.Module]:
    return lambda data: mlp([data.x[0].numel(), *hidden, data.n_classes], **options)


def _optical(_: Any) -> nn.Module:
    options: dict[str, Any] = {"grid": 20, "mask_radius": 8.0, "pool": 1, "input_range": (-1.0, 1.0)}
    device = public("Device")(public("MultimodeFibre")(**options, dtype=torch.float32))
    return physical_net([device, device], (1, 8, 8), 10, [30], "picture", False, "l2")


def _cnn(_: Any) -> nn.Module:
    return cnn((1, 8, 8), 10, channels=(6, 8), batch_norm=True)


def _cafo_cnn(_: Any) -> nn.Module:
    return cafo_cnn((1, 8, 8), 10, (6, 8))


def _vgg(_: Any) -> nn.Module:
    import torchvision  # seconds, which most runs are spared

    import bpfree

    net = torchvision.models.vgg11_bn(num_classes=10)
    return bpfree.localize(net, loss="mono_forward", cut="conv")


def _gnn(kind: Any) -> Callable[[Any], nn.Module]:
    return lambda data: GNN(kind, (16, 16))


NETS: dict[str, Callable[[Any], nn.Module]] = {
    "mlp": _mlp(32, 32),
    "deep": _mlp(32, 32, 32, 32),
    "dropout": _mlp(32, 32, dropout=0.2),
    "cnn": _cnn,
    "cafo_cnn": _cafo_cnn,
    "vgg": _vgg,
    "optical": _optical,
    "gcn": _gnn("gcn"),
    "sage": _gnn("sage"),
    "gat": _gnn("gat"),
}

# ---- what is trained ---------------------------------------------------------------------------------------


def _variants() -> Iterator[Run]:
    """Settings that change what a trainer computes."""
    one: dict[str, Any] = {"epochs": 1}
    yield Run("mono_forward on conv", "mono_forward", "cnn")
    yield Run("mono_forward with dropout", "mono_forward", "dropout")
    yield Run(
        "mono_forward, SGD, cosine", "mono_forward", settings={"optimizer": "sgd", "lr_schedule": "cosine"}
    )
    yield Run("mono_forward, bfloat16", "mono_forward", "cnn", settings={"precision": "bfloat16"})
    yield Run("mono_forward, channels last", "mono_forward", "cnn", settings={"channels_last": True})
    yield Run("mono_forward, analytic", "mono_forward", settings={"gradients": "analytic"})
    yield Run("mono_forward, stacked", "mono_forward", "deep", settings={"gradients": "stacked"})
    yield Run("mono_forward, patience", "mono_forward", fit={"epochs": 4, "patience": 1})
    yield Run(
        "mono_forward on a localized VGG", "mono_forward", "vgg", "photographs", fit=one | {"batch_size": 20}
    )
    yield Run("mono_forward, resumed", "mono_forward", resumed=True)
    yield Run("forward_forward, resumed", "forward_forward", data="padded", resumed=True)
    yield Run("physical, resumed", "physical", "optical", resumed=True)
    for schedule in ("simultaneous", "greedy"):
        name = f"forward_forward on padded digits, {schedule}"
        yield Run(name, "forward_forward", data="padded", settings={"schedule": schedule})
    goodness: dict[str, Any] = {"readout": "goodness", "classifier": False}
    yield Run("forward_forward, goodness", "forward_forward", data="padded", settings=goodness)
    yield Run(
        "forward_forward, hard negatives", "forward_forward", data="padded", settings={"negatives": "hard"}
    )
    layer: dict[str, Any] = {
        "norm": "layer",
        "objective": "symmetric",
        "optimizer": "adam",
        "lr_schedule": "constant",
    }
    yield Run("forward_forward, symmetric", "forward_forward", data="padded", settings=layer)
    for net in ("cafo_cnn", "mlp"):
        yield Run(f"cafo on {net}", "cafo", net)
        yield Run(f"cafo, closed form, {net}", "cafo", net, settings={"predictor": "closed_form"}, fit=one)
        yield Run(f"cafo, dfa, {net}", "cafo", net, settings={"blocks": "dfa"})
    yield Run("counter_current on conv", "counter_current", "cnn")
    changes: tuple[dict[str, Any], ...] = (
        {"gradients": "analytic"},
        {"joint": True, "gate": 0.9},
        {"loss": "cosine"},
        {"loss": "decorrelated", "targets": "samples"},
        {"input_pair": True, "centralize": True, "warmup": 3},
    )
    for settings in changes:
        name = ", ".join(f"{k} {v}" for k, v in settings.items())
        yield Run(f"counter_current, {name}", "counter_current", settings=settings)
    yield Run("local, predsim on conv", "local", "cnn", settings={"loss": "predsim"})
    for loss in ("predsim", "mean_goodness", "prototype_goodness"):
        yield Run(f"local, {loss}", "local", data="padded", settings={"loss": loss})
    for settings in ({"gradients": "autograd"}, {"cache": True, "negatives": "all"}, {"readout": "one_pass"}):
        name = ", ".join(f"{k} {v}" for k, v in settings.items())
        yield Run(f"physical, {name}", "physical", "optical", settings=settings)
    for model in ("aware", "in_silico"):
        simulated: dict[str, Any] = {"model": model, "mismatch": 0.3}
        yield Run(f"physical_backprop, {model}", "physical_backprop", "optical", settings=simulated)
    for variant in ("top_to_loss", "top_to_input", "label_appending", "virtual_nodes"):
        top = {"schedule": "simultaneous"} if variant.startswith("top") else {}
        yield Run(f"forward_gnn, {variant}", "forward_gnn", "gcn", "graph", {"variant": variant, **top})
    yield Run("forward_gnn, prototypes", "forward_gnn", "gcn", "graph", {"learnable_prototypes": True})
    yield Run("forward_gnn, both ways", "forward_gnn", "gcn", "graph", {"direction": "both_ways"})
    for net in ("sage", "gat"):
        yield Run(f"forward_gnn on {net}", "forward_gnn", net, "graph")
        yield Run(f"backprop_gnn on {net}", "backprop_gnn", net, "graph")
    for variant in ("link", "link_goodness", "link_top_to_input"):
        top = {"schedule": "simultaneous"} if variant.endswith("input") else {}
        yield Run(f"forward_gnn, {variant}", "forward_gnn", "gcn", "links", {"variant": variant, **top})
    pipelined: dict[str, Any] = {"schedule": "pipelined"}
    yield Run("mono_forward, two workers", "mono_forward", "deep", settings=pipelined, workers=2)


def runs() -> list[Run]:
    """All of them: every trainer under every schedule, and `_variants`."""
    result: list[Run] = []
    for name in TRAINERS:
        net, data, settings = "mlp", "digits", dict[str, Any]()
        if name.startswith("physical"):
            net = "optical"
        elif "gnn" in name or name.startswith("hop"):
            net, data = "gcn", "graph"
        elif name == "local":
            settings = {"loss": "mono_forward"}
        if net == "mlp" and name != "counter_current":
            settings["lr"] = 0.01
        for schedule in ("simultaneous", "greedy"):
            result.append(Run(f"{name}, {schedule}", name, net, data, settings | {"schedule": schedule}))
    return result + list(_variants())


# ---- one run -----------------------------------------------------------------------------------------------


class _StoppedError(Exception):
    """Stops the first part of a resumed run."""


def _trainer(run: Run) -> Any:
    refusals: list[BpfreeError] = []
    for settings in spellings(run.settings):
        torch.manual_seed(0)
        net = NETS[run.net](DATA[run.data]()[0])
        try:
            return get_trainer(run.trainer)(net, seed=0, progress=False, **settings)
        except BpfreeError as error:
            refusals.append(error)
    raise refusals[0]


def _fit(run: Run, folder: Path) -> tuple[Any, Any]:
    train, validation, _ = DATA[run.data]()
    fit: dict[str, Any] = {"epochs": EPOCHS, "batch_size": 64} | dict(run.fit)
    if not run.resumed:
        trainer = _trainer(run)
        return trainer, trainer.fit(train, validation, **fit)

    def stop(*_: Any) -> None:
        raise _StoppedError

    checkpoint = Checkpoint(folder / "run.safetensors", every_s=0.0)
    with suppress(_StoppedError):
        _trainer(run).fit(train, validation, checkpoint=checkpoint, hooks=Hooks(progress=stop), **fit)
    trainer = _trainer(run)
    return trainer, trainer.fit(train, validation, checkpoint=checkpoint, **fit)


def digest(tensor: torch.Tensor) -> str:
    """A hash of the shape, the type and all bits of a tensor."""
    plain = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    raw = plain.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    head = f"{list(tensor.shape)} {tensor.dtype} ".encode()
    return hashlib.sha256(head + raw).hexdigest()[:16]


def outcome(run: Run, folder: Path) -> dict[str, Any]:
    """Losses, weights and predictions of a run, or the error by which it is refused."""
    try:
        trainer, history = _fit(run, folder)
    except BpfreeError as error:
        return {"refused": type(error).__name__, "message": str(error)}
    test = DATA[run.data]()[2]
    x = test.batch(torch.arange(len(test)))[0]
    weights = {name: digest(p) for name, p in trainer.cascade.named_parameters()}
    return {
        "losses": [[float(v).hex() for v in row["loss"]] for row in history.rows],
        "weights": weights,
        "predictions": digest(trainer.predict(x)),
        # The first value is the metric's, which older revisions call accuracy even where it is another one.
        "accuracy": next(iter(trainer.evaluate(test).values())),
    }


def main(out: Path, pattern: str) -> None:
    """Write ``<number>.json`` for each run whose name contains ``pattern``."""
    if Path(bpfree.__file__).parents[1] != Path.cwd():
        raise SystemExit(f"{Path.cwd()}: bpfree is imported from {bpfree.__file__} instead of this folder")
    torch.set_num_threads(1)
    rank = int(os.environ.get("RANK", "0"))
    for number, run in enumerate(runs()):
        if pattern not in run.name or (run.workers > 1) != ("RANK" in os.environ):
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                result = outcome(run, Path(folder))
            except Exception as error:  # noqa: BLE001 (a crash is an outcome to compare, and it is reported)
                result = {"crashed": type(error).__name__, "message": str(error)}
        if rank == 0:
            text = json.dumps({"name": run.name, **result})
            (out / f"{number:03d}{'w' if run.workers > 1 else ''}.json").write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
