"""Forward-Forward: the position of the label, scales, labels."""

from __future__ import annotations

import torch

from benchmarks.robustness import _by_hand as hand
from benchmarks.robustness import _nets as nets
from benchmarks.robustness._case import (
    ANY,
    REFUSED,
    REFUSED_OR_WARNED,
    RIGHT_OR_WARNED,
    Case,
    Cases,
)
from benchmarks.robustness._compare import losses_differ, row, solves, trainer_of, uses_differ
from benchmarks.robustness._samples import blank_margin, samples
from benchmarks.robustness._verdict import Watch

registry = Cases()


for _readout in ("classifier", "goodness"):

    @registry.add("forward_forward", "mlp", f"images with a blank margin, {_readout}")
    def on_blank_margin(watch: Watch, readout: str = _readout) -> str | None:
        s = blank_margin(samples(1, 8, 8, n=96))
        net = row(nets.mlp(64, (40, 40)))
        return solves(watch, "forward_forward", net, s.data, s, readout=readout, fit={"epochs": 40})

    @registry.add(
        "forward_forward", "mlp", f"table, class told by the first columns, {_readout}", RIGHT_OR_WARNED
    )
    def first_columns(watch: Watch, readout: str = _readout) -> str | None:
        y = torch.arange(96) % 4
        x = torch.rand(96, 12, generator=torch.Generator().manual_seed(0)) * 0.1
        x[torch.arange(96), y] = 1.0
        s = samples(12)
        s = type(s)(x, y, 4)
        net = row(nets.mlp(12, (40, 40), 4))
        return solves(watch, "forward_forward", net, s.data, s, readout=readout, fit={"epochs": 40})

    @registry.add("forward_forward", "mlp", f"table, {_readout}", RIGHT_OR_WARNED)
    def table(watch: Watch, readout: str = _readout) -> str | None:
        s = samples(12, n=96)
        net = row(nets.mlp(12, (40, 40)))
        return solves(watch, "forward_forward", net, s.data, s, readout=readout, fit={"epochs": 40})

    @registry.add(
        "forward_forward",
        "mlp",
        f"samples of 0 to 255, {_readout}",
        REFUSED_OR_WARNED if _readout == "goodness" else ANY,
        warning_is_enough=True,
    )
    def pixels(watch: Watch, readout: str = _readout) -> str | None:
        s = blank_margin(samples(1, 8, 8, n=96))
        s = type(s)(s.x * 255, s.y, 3)
        net = row(nets.mlp(64, (40, 40)))
        return solves(watch, "forward_forward", net, s.data, s, readout=readout, fit={"epochs": 40})


for _readout in ("classifier", "goodness"):

    @registry.add("forward_forward", "mlp", f"two classes, by hand, {_readout}")
    def as_the_loop(watch: Watch, readout: str = _readout) -> str | None:
        s = blank_margin(samples(1, 8, 8, classes=2, noise=0.5))
        net = row(nets.mlp(64, (20, 14), 2))
        made = trainer_of("forward_forward", net, watch, readout=readout, lr_schedule="constant", lr=0.01)
        history = made.fit(s.data, epochs=5, batch_size=48)
        loop = hand.forward_forward(watch.first, readout, s.x, s.y, 5, 0.01)
        return losses_differ(history, loop) or uses_differ(made, loop.scores, s.data, s)


@registry.add("forward_forward", "mlp", "labels from 1", REFUSED)
def ff_shifted(watch: Watch) -> str | None:
    s = blank_margin(samples(1, 8, 8))
    return solves(watch, "forward_forward", row(nets.mlp(64)), (s.x, s.y + 1), s)


@registry.add("forward_forward", "mlp", "fewer classes than the output layer", RIGHT_OR_WARNED | REFUSED)
def ff_fewer(watch: Watch) -> str | None:
    s = blank_margin(samples(1, 8, 8, classes=2))
    return solves(watch, "forward_forward", row(nets.mlp(64, (40, 40))), s.pair, s, fit={"epochs": 40})


def cases() -> list[Case]:
    """All cases."""
    return registry.all
