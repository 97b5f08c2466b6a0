"""Precision: one setting for all computations of a run."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from bpfree import BadValue, Trainer
from bpfree.trainers import TRAINERS
from tests.helpers import CLASSES, PLAIN_TRAINERS, easy, images, make_cnn, make_mlp, vectors

#: Products that dominate a network's arithmetic.
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward", "linear")


class Products(TorchDispatchMode):
    """Records the dtype of every product, including those of backward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[tuple[str, torch.dtype]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            tensors = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, Tensor)]
            self.dtypes |= {(name, tensor.dtype) for tensor in tensors}
        return func(*args, **(kwargs or {}))


CASES: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in PLAIN_TRAINERS]
CASES += [
    ("mono_forward", {"schedule": "greedy"}),
    ("mono_forward", {"readout": "sum_probabilities"}),
    ("forward_forward", {"schedule": "greedy", "redraw_negatives": False}),
    ("forward_forward", {"readout": "goodness", "classifier": False}),
    ("random_features", {"schedule": "greedy"}),
    ("cafo", {"schedule": "simultaneous", "predictor": "sparsemax"}),
    ("counter_current", {"loss": "decorrelated", "joint": True}),
]


@pytest.mark.parametrize("net", [make_mlp, make_cnn])
@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
def test_every_product_of_a_run_has_the_precision_of_the_settings(
    name: str, settings: dict[str, Any], net: Any
) -> None:
    data = vectors() if net is make_mlp else images()
    for precision in ("float32", "bfloat16"):
        trainer = TRAINERS[name](net(), progress=False, precision=precision, **settings)
        trainer.build(data.sample_shape, CLASSES)
        with Products() as products:
            trainer.fit(data, data, epochs=1, batch_size=16)
            trainer.step(*data.batch(torch.arange(16)))
            trainer.evaluate(data)
            trainer.predict(data.x)
        # Values that are always computed in float64, such as those of a diagnosis, are left out.
        dtypes = {dtype for _, dtype in products.dtypes} - {torch.float64}
        assert dtypes == {getattr(torch, precision)}, products.dtypes


def test_the_sums_of_a_closed_form_are_in_float64() -> None:
    data = images()
    trainer = TRAINERS["cafo"](make_cnn(), predictor="closed_form", precision="bfloat16", progress=False)
    trainer.build(data.sample_shape, CLASSES)
    with Products() as products:
        trainer.fit(data, data, batch_size=16)
    assert ("convolution", torch.float32) not in products.dtypes
    losses = trainer.cascade.losses
    assert all(loss.linear.weight.dtype == torch.float32 for loss in losses)
    assert all(loss.chosen is not None for loss in losses)


@pytest.mark.parametrize("name", ["mono_forward", "forward_forward", "counter_current", "cafo", "dfa"])
def test_losses_weights_and_scores_are_in_float32(name: str) -> None:
    trainer = TRAINERS[name](make_mlp(), progress=False, precision="bfloat16")
    trainer.build((12,), CLASSES)
    losses = trainer.step(*vectors(16).batch(torch.arange(16)))
    if name != "dfa":  # the values of its losses are not used
        assert {loss.dtype for loss in losses} == {torch.float32}
    assert {p.dtype for p in trainer.cascade.parameters()} == {torch.float32}
    assert trainer.model(vectors().x).dtype == torch.float32


def test_bfloat16_is_close_to_float32() -> None:
    runs = []
    for precision in ("float32", "bfloat16"):
        trainer = TRAINERS["mono_forward"](make_mlp(), precision=precision, lr=0.01, progress=False)
        runs.append(trainer.fit(easy(), easy(seed=1), epochs=5, batch_size=16))
    float32, bfloat16 = (run.rows[-1]["loss"] for run in runs)
    assert bfloat16 != float32
    assert bfloat16 == pytest.approx(float32, rel=0.05)


def test_a_step_uses_the_weights_of_the_step_before() -> None:
    # With cached bfloat16 weights the second step would have the losses of the first one.
    trainer = TRAINERS["mono_forward"](make_mlp(), precision="bfloat16", lr=0.05, progress=False)
    history = trainer.fit(easy(), epochs=6, batch_size=120)
    first = [row["loss"][0] for row in history.rows]
    assert all(after < before for before, after in pairwise(first))


def test_autocast_of_the_caller_changes_nothing() -> None:
    def losses() -> list[list[float]]:
        trainer: Trainer = TRAINERS["mono_forward"](make_mlp(), progress=False)
        return [row["loss"] for row in trainer.fit(vectors(), epochs=2, batch_size=16).rows]

    plain = losses()
    with torch.autocast("cpu", torch.bfloat16):
        assert losses() == plain


@pytest.mark.parametrize("extra", [{"precision": "bfloat16"}, {"compile": "aot_eager"}], ids=str)
@pytest.mark.parametrize("name", ["mono_forward", "counter_current", "cafo"])
def test_closed_form_gradients_refuse_settings_without_effect(name: str, extra: dict[str, Any]) -> None:
    trainer = TRAINERS[name](make_mlp(), gradients="analytic", progress=False, **extra)
    with pytest.raises(BadValue, match="gradients = 'analytic'"):
        trainer.build((12,), CLASSES)
