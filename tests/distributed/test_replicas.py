"""Replicas of a group: the step of the whole batch, the same weights on each, and what they cannot share."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bpfree import Backprop, BadValue, CascadedForward, ForwardForward, Local, MonoForward, Trainer
from bpfree.distributed.neighbors import LinkedNeighbors
from bpfree.distributed.replicas import Replicas
from bpfree.encodings.label_overlay import LabelOverlay, Overlaid
from bpfree.encodings.label_slots import LabelSlots
from bpfree.losses import (
    ClosedForm,
    CounterCurrent,
    DirectFeedback,
    Goodness,
    LocalCrossEntropy,
    LocalLoss,
    LocalSparsemax,
    MeanGoodness,
    OnePassLoss,
    PairCosine,
    PredSim,
    PrototypeGoodness,
    Reconstruction,
)
from tests.distributed.test_pipelined import make
from tests.distributed.test_pipelined_faults import mortal
from tests.helpers import CLASSES, easy, make_mlp, snapshot, vectors
from tests.workers import Group, run

# ---- parts of a batch ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "samples"), [(1, 7), (2, 8), (3, 7), (4, 2)])
def test_parts_are_the_batch_once_view_by_view(n: int, samples: int) -> None:
    data, generator = vectors(samples), torch.Generator().manual_seed(0)
    for encoding in (LabelOverlay(CLASSES), LabelSlots(CLASSES), LabelSlots(CLASSES, "all")):
        negatives = encoding.draw(data.y, generator)
        whole, target = encoding.encode(data.x, data.y, negatives)
        parts, targets, sizes = [], [], []
        for number in range(n):
            replica = Replicas(None, number, n)
            rows, part_target = replica.batch_part(whole, target, encoding.views)
            assert isinstance(rows, Tensor | Overlaid)
            dense = rows if isinstance(rows, Tensor) else rows.dense()
            assert len(dense) == len(part_target) == encoding.views * max(1, round(replica.weight * samples))
            sizes.append(round(replica.weight * samples))
            parts.append(dense.unflatten(0, (encoding.views, -1))[:, : sizes[-1]])
            targets.append(part_target.unflatten(0, (encoding.views, -1))[:, : sizes[-1]])
        assert sum(sizes) == samples
        assert sorted(sizes, reverse=True) == sizes
        assert sizes[0] - sizes[-1] <= 1
        dense = whole if isinstance(whole, Tensor) else whole.dense()
        assert torch.equal(torch.cat(parts, 1).flatten(0, 1), dense)
        assert torch.equal(torch.cat(targets, 1).flatten(), target)


def counter_current(**options: Any) -> CounterCurrent:
    return CounterCurrent(nn.Linear(9, 5), **options)


LOSSES: list[tuple[LocalLoss, bool]] = [
    (LocalCrossEntropy(), True),
    (LocalSparsemax(), True),
    (MeanGoodness(), True),
    (PrototypeGoodness(), True),
    (DirectFeedback(), True),
    (Reconstruction(), True),
    (counter_current(), True),
    (counter_current(form="cosine", warmup=3), True),
    (Goodness(), True),
    (Goodness("mean", objective="symmetric"), True),
    (PairCosine(), True),
    (PredSim(0.0), True),
    (PredSim(), False),
    (counter_current(form="decorrelated"), False),
    (counter_current(per_sample=True), False),
    (Goodness(peer_weight=0.1), False),
    (ClosedForm(), False),
]


@pytest.mark.parametrize(("loss", "by_row"), LOSSES)
def test_a_loss_by_row_is_the_mean_of_parts_and_so_is_its_gradient(loss: LocalLoss, by_row: bool) -> None:
    torch.manual_seed(0)
    views = 2 if isinstance(loss, Goodness | PairCosine) else 1
    target = torch.arange(7) % CLASSES if views == 1 else torch.tensor([1] * 7 + [0] * 7)
    output = torch.rand(7 * views, 9, dtype=torch.float64, requires_grad=True)
    loss.build(output.detach(), CLASSES)
    loss.double()
    feedback: Tensor | None = None
    if isinstance(loss, CounterCurrent):
        feedback = torch.rand(CLASSES, 9, dtype=torch.float64)
    if isinstance(loss, Reconstruction):
        target = torch.rand(7, 9, dtype=torch.float64)
    errors = torch.rand(7, CLASSES, dtype=torch.float64) if isinstance(loss, DirectFeedback) else None

    def value(rows: Tensor, target: Tensor, error: Tensor | None) -> Tensor:
        loss_value: Tensor = loss.eval()(rows, target, feedback if error is None else error)
        return loss_value

    whole = value(output, target, errors)
    parts = torch.zeros((), dtype=torch.float64)
    for number in range(3):
        replica = Replicas(None, number, 3)
        rows, part_target = replica.batch_part(output, target, views)
        error = None if errors is None else replica.batch_part(errors, target, 1)[0]
        assert isinstance(rows, Tensor)
        assert error is None or isinstance(error, Tensor)
        parts = parts + replica.weight * value(rows, part_target, error)
    assert loss.by_row == by_row
    if isinstance(loss, OnePassLoss):
        return  # It is not trained by the gradient of its value.
    inputs = [output, *loss.parameters()]
    one, other = (torch.autograd.grad(v, inputs, allow_unused=True) for v in (whole, parts))
    same = [
        torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(one, other, strict=True) if a is not None
    ]
    assert (torch.allclose(whole, parts, rtol=1e-12) and all(same)) == by_row


# ---- whole runs ------------------------------------------------------------------------------------------

EPOCHS = 3


def trained(kind: str, schedule: str, path: Path | None = None, **pipeline: Any) -> dict[str, Any]:
    """Ninety-seven samples end in a batch of one, which leaves nothing to the second replica."""
    common: dict[str, Any] = {"schedule": schedule, "progress": False}
    if kind == "backprop":
        trainer: Trainer = Backprop(make_mlp(16, 16, 16), lr=0.05, optimizer="sgd", **common)
    elif kind == "mono_forward":
        trainer = MonoForward(make_mlp(16, 16, 16), lr=0.05, optimizer="sgd", **common)
    else:
        trainer = make(kind, schedule, **({"peer_weight": 0.0} if kind == "forward_forward" else {}))
    history = trainer.fit(
        easy(97), easy(60, seed=1), epochs=EPOCHS, batch_size=16, checkpoint=path,
        pipeline={"save_every": 3, **pipeline},
    )  # fmt: skip
    return {"weights": snapshot(trainer.cascade), "rows": history.rows, "resumed": history.resumed}


def hashing(kind: str, pipeline: dict[str, Any]) -> dict[str, Any]:
    """`trained`, and a hash of this worker's own blocks after every step, and of the whole net at the end."""
    trained_blocks: list[Any] = []
    hashes: list[str] = []
    average, send = Replicas.average_gradients, LinkedNeighbors.send_outputs

    def noting(self: Replicas, blocks: Any) -> None:
        trained_blocks.extend(blocks)
        average(self, blocks)

    def hashed(self: LinkedNeighbors, rows: Any) -> None:
        # The highest block of the group has taken its step.
        hashes.append(digest([t for block in trained_blocks for t in block.state_dict().values()]))
        send(self, rows)

    Replicas.average_gradients = noting  # type: ignore[method-assign]
    LinkedNeighbors.send_outputs = hashed  # type: ignore[method-assign]
    result = trained(kind, "pipelined", **pipeline)
    return result | {"hashes": hashes, "whole": digest(result["weights"].values())}


def digest(tensors: Any) -> str:
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().numpy().tobytes())
    return sha.hexdigest()


@pytest.mark.parametrize(
    ("kind", "groups", "replicas", "pipeline"),
    [
        ("backprop", 1, 2, {}),
        ("mono_forward", 1, 3, {}),
        ("mono_forward", 2, 2, {"groups": [1, 2]}),
        ("forward_forward", 2, 2, {}),
        ("counter_current", 2, 2, {"staleness": 0}),
    ],
)
def test_replicas_have_equal_weights_which_are_those_of_one_worker(
    kind: str, groups: int, replicas: int, pipeline: dict[str, Any], tmp_path: Path
) -> None:
    expected = trained(kind, "simultaneous")
    results = run(tmp_path, groups * replicas, hashing, kind, {"replicas": replicas, **pipeline})
    for rank, worker in enumerate(results):
        # Bit for bit the same as the first replica, after each step.
        assert len(worker["hashes"]) == EPOCHS * 7
        assert worker["hashes"] == results[rank % groups]["hashes"]
        assert worker["whole"] == results[0]["whole"]
        assert worker["rows"] == results[0]["rows"]
    # The sums of a mean are taken in another order: some units of float32's last place (6e-8 of the value) in
    # every gradient, and steps that are small beside the weights.
    for name, tensor in expected["weights"].items():
        torch.testing.assert_close(results[0]["weights"][name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    for row, one in zip(results[0]["rows"], expected["rows"], strict=True):
        torch.testing.assert_close(torch.tensor(row["loss"]), torch.tensor(one["loss"]), rtol=1e-5, atol=1e-7)


def noise(replicas: int) -> list[Tensor]:
    """The masks of dropout that the lowest block has drawn."""
    masks: list[Tensor] = []
    layer = nn.Dropout(0.5)
    layer.register_forward_hook(lambda _, x, y: masks.append((y != 0) | (x[0] == 0)))
    net = nn.Sequential(nn.Sequential(nn.Linear(12, 64), nn.Sigmoid(), layer), nn.Linear(64, CLASSES))
    trainer = MonoForward(net, schedule="pipelined", progress=False)
    trainer.fit(easy(32), epochs=1, batch_size=16, pipeline={"replicas": replicas})
    return masks[-2:]


def test_replicas_draw_other_noise_and_the_first_that_of_one_worker(tmp_path: Path) -> None:
    first, second = run(tmp_path, 2, noise, 2)
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[0], first[1])


# ---- faults ----------------------------------------------------------------------------------------------


def replicated(path: Path | None, groups: list[int], replicas: int) -> dict[str, Any]:
    return trained("mono_forward", "pipelined", path, groups=groups, replicas=replicas, queue=1)


@cache
def undisturbed(store: Path, *shape: Any) -> dict[str, Any]:
    groups, replicas = list(shape[:-1]), shape[-1]
    first: dict[str, Any] = run(store, len(groups) * replicas, replicated, None, groups, replicas)[0]
    return first


def killed(path: Path, groups: list[int], replicas: int, rank: int, *event: Any) -> dict[str, Any]:
    mortal(rank, *event)
    return replicated(path, groups, replicas)


@pytest.mark.parametrize(
    ("groups", "replicas", "rank", "event", "number"),
    [([2, 1], 2, 3, "take", 12), ([2, 1], 2, 0, "average", 13), ([3], 3, 2, "synchronize", 2)],
)
def test_after_a_kill_all_replicas_resume_to_the_bits_of_an_undisturbed_run(
    groups: list[int],
    replicas: int,
    rank: int,
    event: str,
    number: int,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path, n = tmp_path / "run", len(groups) * replicas
    first = Group(tmp_path, n, killed, path, groups, replicas, rank, event, number)
    _, raised = first.results([k for k in range(n) if k != rank])
    assert all("WorkerLost: " in error for error in raised.values()), raised
    names = [f"run.worker{k}of{len(groups)}x{replicas}" for k in range(len(groups))]
    assert sorted(p.name for p in tmp_path.glob("run*")) == names
    results = run(tmp_path, n, replicated, path, groups, replicas)
    expected = undisturbed(tmp_path_factory.getbasetemp(), *groups, replicas)
    for worker in results:
        assert worker["resumed"] == 1
        assert worker["rows"] == expected["rows"]
        for name, tensor in expected["weights"].items():
            assert torch.equal(worker["weights"][name], tensor), name
    assert sorted(p.name for p in tmp_path.glob("run*")) == ["run"]


# ---- refused ---------------------------------------------------------------------------------------------


def refusals() -> list[str]:
    norm = nn.Sequential(nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU()), nn.Linear(8, CLASSES))
    trainers: list[Trainer] = [
        Local(make_mlp(), loss="predsim", schedule="pipelined", progress=False),
        MonoForward(make_mlp(), gradients="analytic", schedule="pipelined", progress=False),
        MonoForward(norm, schedule="pipelined", progress=False),
        CascadedForward(make_mlp(), predictor="closed_form", schedule="pipelined", progress=False),
        ForwardForward(
            make_mlp(),
            peer_weight=0.1,
            readout="goodness",
            classifier=False,
            schedule="pipelined",
            progress=False,
        ),
    ]
    messages = []
    for trainer in trainers:
        with pytest.raises(BadValue) as caught:
            trainer.fit(easy(20), epochs=1, pipeline={"replicas": 2})
        messages.append(str(caught.value))
    with pytest.raises(BadValue) as caught:
        trainers[0].fit(easy(20), epochs=1, pipeline={"replicas": 3})
    return [*messages, str(caught.value)]


def test_what_replicas_cannot_share_is_refused(tmp_path: Path) -> None:
    parts = [
        "the value of PredSim, with these options, for a batch is not the mean",
        "use gradients = 'autograd'",
        "BatchNorm1d takes its statistics from all rows of a batch",
        "the value of ClosedForm",
        "the value of Goodness",
        "pipeline.replicas = 3: there are 2 workers",
    ]
    for messages in run(tmp_path, 2, refusals):
        for message, part in zip(messages, parts, strict=True):
            assert part in message
    with pytest.raises(BadValue, match=r"pipeline.replicas = 2: there are 1 workers"):
        MonoForward(make_mlp(), schedule="pipelined").fit(easy(20), epochs=1, pipeline={"replicas": 2})
