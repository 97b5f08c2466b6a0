"""Sweeps leave what blocks remember of training as it was, and nothing comes down in the first."""

from __future__ import annotations

import torch

from bpfree import ForwardGNN
from bpfree.encodings.graph import GraphEncoding
from bpfree.engine.settle import settle
from tests.helpers import CLASSES, make_gnn, nodes


def built(variant: str) -> tuple[ForwardGNN, GraphEncoding]:
    trainer = ForwardGNN(make_gnn(), progress=False, variant=variant, schedule="simultaneous")
    trainer.build_for(nodes())  # type: ignore[arg-type]
    encoding = trainer.cascade.encoding
    assert isinstance(encoding, GraphEncoding)
    return trainer, encoding


def test_what_is_remembered_of_training_is_put_back() -> None:
    trainer, encoding = built("top_to_input")
    trainer.step(nodes().ids, nodes().y)
    before = trainer.cascade.states()
    assert len(before) == 2
    sweeps = settle(trainer.cascade.units, encoding.nodes(None), encoding.message(), 3)
    next(sweeps)
    assert not torch.equal(trainer.cascade.states()["0"], before["0"])
    sweeps.close()
    for name, memory in trainer.cascade.states().items():
        assert torch.equal(memory, before[name])


def test_nothing_comes_down_in_the_first_sweep() -> None:
    trainer, encoding = built("top_to_input")
    message = encoding.message()
    assert message is not None
    told, untold = (
        list(settle(trainer.cascade.units, encoding.nodes(None), labels, 2))
        for labels in (message, torch.zeros(63, CLASSES))
    )
    for one, other in zip(told[0], untold[0], strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(told[1][1], untold[1][1])


def test_a_block_answers_again_only_where_it_hears_something_new() -> None:
    for variant, answers in (("top_to_loss", [1, 1]), ("top_to_input", [3, 3])):
        trainer, encoding = built(variant)
        trainer.step(nodes().ids, nodes().y)
        asked: list[int] = []
        for k, block in enumerate(trainer.cascade.units):
            block.body.register_forward_hook(lambda *_, k=k, asked=asked: asked.append(k))
        sweeps = list(settle(trainer.cascade.units, encoding.nodes(None), encoding.message(), 3))
        assert [asked.count(k) for k in range(2)] == answers
        # By hand: what comes down joins the loss alone, or the input.
        lower = sweeps[2][0]
        assert torch.equal(lower, sweeps[1][0]) == (variant == "top_to_loss")
        assert not torch.equal(lower, sweeps[0][0])
