"""Sweeps restore the states of the losses, and the first sweep has no feedback."""

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


def test_the_states_of_training_are_restored() -> None:
    trainer, encoding = built("top_to_input")
    trainer.step(nodes().ids, nodes().y)
    before = trainer.cascade.states()
    assert len(before) == 2
    sweeps = settle(trainer.cascade.units, encoding.nodes(None), encoding.message(), 3)
    next(sweeps)
    assert not torch.equal(trainer.cascade.states()["0"], before["0"])
    sweeps.close()
    for name, state in trainer.cascade.states().items():
        assert torch.equal(state, before[name])


def test_the_first_sweep_has_no_feedback() -> None:
    trainer, encoding = built("top_to_input")
    message = encoding.message()
    assert message is not None
    with_labels, without_labels = (
        list(settle(trainer.cascade.units, encoding.nodes(None), labels, 2))
        for labels in (message, torch.zeros(63, CLASSES))
    )
    for one, other in zip(with_labels[0], without_labels[0], strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(with_labels[1][1], without_labels[1][1])


def test_a_block_is_called_again_only_for_a_new_input() -> None:
    for variant, expected in (("top_to_loss", [1, 1]), ("top_to_input", [3, 3])):
        trainer, encoding = built(variant)
        trainer.step(nodes().ids, nodes().y)
        calls: list[int] = []
        for k, block in enumerate(trainer.cascade.units):
            block.body.register_forward_hook(lambda *_, k=k, calls=calls: calls.append(k))
        sweeps = list(settle(trainer.cascade.units, encoding.nodes(None), encoding.message(), 3))
        assert [calls.count(k) for k in range(2)] == expected
        # The feedback is used in the loss only, or is concatenated to the input.
        lower = sweeps[2][0]
        assert torch.equal(lower, sweeps[1][0]) == (variant == "top_to_loss")
        assert not torch.equal(lower, sweeps[0][0])
