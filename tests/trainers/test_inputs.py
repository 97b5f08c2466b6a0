"""Wrong inputs are refused in one sentence: the value, what was expected, and the fix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bpfree import (
    Backprop,
    BadValue,
    Block,
    Cascade,
    ForwardForward,
    JointBlock,
    Local,
    MonoForward,
    Trainer,
    localize,
)
from bpfree.core.readouts import make_readouts
from bpfree.data import TensorData
from bpfree.losses import LocalCrossEntropy
from bpfree.trainers import TRAINERS
from bpfree.trainers.inputs import find_device
from tests.helpers import CLASSES, PLAIN_TRAINERS, images, make_cnn, make_mlp, nodes, snapshot, vectors

every = pytest.mark.parametrize("kind", PLAIN_TRAINERS.values(), ids=PLAIN_TRAINERS.keys())
X, Y = vectors(16).batch(torch.arange(16))


def built(kind: type[Trainer] = MonoForward, **settings: Any) -> Trainer:
    trainer = kind(make_mlp(), progress=False, **settings)
    trainer.build((12,), CLASSES)
    return trainer


# ---- devices, nets, seeds --------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["foo", "cuda:x", "", 3.5, "cuda:99"])
def test_a_missing_device_is_refused(device: Any) -> None:
    with pytest.raises(BadValue, match="device = "):
        MonoForward(make_mlp(), device=device, progress=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_is_refused_on_a_machine_without_a_gpu() -> None:
    with pytest.raises(BadValue, match="this machine has 0 usable CUDA devices; try 'cpu'"):
        find_device("cuda")


def test_existing_devices_are_found() -> None:
    assert find_device("cpu") == find_device(torch.device("cpu")) == torch.device("cpu")
    if torch.cuda.is_available():
        assert find_device("cuda") == torch.device("cuda", torch.cuda.current_device())


def test_a_wrong_type_of_network_or_seed_is_refused() -> None:
    net: Any = [nn.Linear(3, 3)]
    seed: Any = "one"
    with pytest.raises(BadValue, match=r"net is a list: expected a torch\.nn\.Module"):
        MonoForward(net, progress=False)
    with pytest.raises(BadValue, match=r"seed = 'one': expected an integer"):
        MonoForward(make_mlp(), seed=seed, progress=False)


# ---- classes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [1, 2, 10])
@pytest.mark.parametrize("name", ["backprop", "backprop_ds", "mf_joint", "mono_forward", "local",
                                  "random_features", "counter_current", "dfa"])  # fmt: skip
def test_an_output_layer_with_another_number_of_classes_is_refused(name: str, outputs: int) -> None:
    net = make_mlp()
    net[-1] = nn.Linear(16, outputs)
    message = (
        rf"has \[{outputs}\] scores per sample, but the data have 3 classes: use a network with 3 outputs"
    )
    with pytest.raises(BadValue, match=message):
        TRAINERS[name](net, progress=False).fit(vectors(), epochs=1)


def test_a_cascade_with_another_number_of_classes_is_refused() -> None:
    net = make_mlp()
    net[-1] = nn.Linear(16, 10)
    with pytest.raises(BadValue, match="the data have 3 classes"):
        MonoForward(localize(net), progress=False).fit(vectors(), epochs=1)


def test_classes_without_samples_can_be_declared() -> None:
    net = make_mlp()
    net[-1] = nn.Linear(16, 10)
    trainer = MonoForward(net, progress=False)
    trainer.fit(TensorData(X, Y, 10), epochs=1)
    assert trainer.n_classes == 10
    # A pair of tensors does not declare its number of classes.
    assert 0 <= trainer.evaluate((X, Y))["accuracy"] <= 1
    trainer.fit((X, Y), (X, Y), epochs=1)


def test_data_with_another_number_of_classes_than_the_trainer_are_refused() -> None:
    for use in (lambda t, d: t.evaluate(d), lambda t, d: t.fit(d)):
        with pytest.raises(BadValue, match="built for 3 classes, the data have 5"):
            use(built(), TensorData(X, Y, 5))


def test_labels_that_seem_to_start_at_1_give_a_warning_if_the_classes_are_declared() -> None:
    x, y = X[Y > 0], Y[Y > 0]
    with pytest.warns(UserWarning, match=r"training labels are 1\.\.2, none of \d+ is 0.*relabel y by y - 1"):
        MonoForward(make_mlp(), progress=False).fit(TensorData(x, y, CLASSES), epochs=1)
    # No warning in evaluation, or if another class is missing in training.
    trainer = MonoForward(make_mlp(), progress=False)
    trainer.fit(TensorData(X[Y != 1], Y[Y != 1], CLASSES), (x, y), epochs=1)
    trainer.evaluate((x, y))
    trainer.step(x, y)


@every
def test_labels_that_start_at_1_are_refused(kind: type[Trainer]) -> None:
    with pytest.raises(BadValue, match=r"labels 1\.\.3 and none is 0; expected 0\.\.2; replace y by y - 1"):
        kind(make_mlp(), progress=False).fit((X, Y + 1), epochs=1)


@every
def test_numpy_arrays_and_tensors_give_the_same_run(kind: type[Trainer]) -> None:
    runs = []
    for pair in ((X, Y), (X.numpy(), Y.numpy()), (X.double().numpy(), Y.int().numpy())):
        trainer = kind(make_mlp(), progress=False)
        rows = trainer.fit(pair, pair, epochs=1).rows
        runs.append((rows, trainer.predict(pair[0]).tolist(), trainer.evaluate(pair)))
    assert runs[0] == runs[1] == runs[2]


# ---- shapes ----------------------------------------------------------------------------------------------


@every
def test_samples_of_another_shape_are_refused_everywhere(kind: type[Trainer]) -> None:
    trainer, wrong = built(kind), vectors(16, width=13)
    before = snapshot(trainer.cascade)
    for use in (
        lambda: trainer.fit(wrong, epochs=1),
        lambda: trainer.fit(vectors(), wrong, epochs=1),
        lambda: trainer.evaluate(wrong),
        lambda: trainer.predict(wrong.x),
        lambda: trainer.step(wrong.x, wrong.y),
    ):
        with pytest.raises(BadValue, match=r"does not accept samples of shape \(13,\)"):
            use()
    assert all(torch.equal(t, before[name]) for name, t in trainer.cascade.state_dict().items())


@pytest.mark.parametrize("shape", [(3, 8, 8), (8, 8), (12,), (1, 4, 4)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    net = make_cnn(batch_norm=True)
    with pytest.raises(BadValue, match=r"does not accept samples of shape"):
        MonoForward(net, progress=False).build(shape, CLASSES)


def test_another_shape_that_the_network_accepts_is_allowed() -> None:
    data = images(size=8)
    torch.manual_seed(0)
    trainer = Backprop(nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, CLASSES)),
                       progress=False)  # fmt: skip
    trainer.fit(data, epochs=1)
    flat = TensorData(data.x.flatten(1), data.y, CLASSES)
    assert trainer.evaluate(flat) == trainer.evaluate(data)
    assert not trainer.cascade.training


# ---- labels and values -----------------------------------------------------------------------------------


@every
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, Y.clone().fill_(3), r"y has labels 3\.\.3; expected 0\.\.2"),
        (X, Y - 1, r"y has labels -1\.\."),
        (X, Y.float(), r"y is torch\.float32; expected int64"),
        (X, Y[:5], "one label per sample"),
        (X, Y.unsqueeze(1), "one label per sample"),
        (X.index_fill(0, torch.tensor([4, 9]), torch.nan), Y, "2 of 16 samples, the first is number 4"),
        (X.index_fill(0, torch.tensor([2]), torch.inf), Y, "1 of 16 samples, the first is number 2"),
        (X.index_fill(0, torch.tensor([15]), -torch.inf), Y, "number 15"),
    ],
    ids=["high", "low", "float", "few", "matrix", "nan", "inf", "minus inf"],
)
def test_wrong_labels_and_values_are_refused_everywhere(
    kind: type[Trainer], x: torch.Tensor, y: torch.Tensor, message: str
) -> None:
    trainer = built(kind)
    for use in (
        lambda: trainer.fit((x, y), epochs=1),
        lambda: trainer.evaluate((x, y)),
        lambda: trainer.step(x, y),
    ):
        with pytest.raises(BadValue, match=message):
            use()


def test_samples_to_predict_must_be_finite() -> None:
    with pytest.raises(BadValue, match="number 4"):
        built().predict(X.index_fill(0, torch.tensor([4]), torch.nan))
    with pytest.raises(BadValue, match="at least one sample"):
        built().predict(X[:0])


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [((X * 255).to(torch.uint8), Y, r"x is torch\.uint8: expected floats"), (X.numpy(), Y, "two tensors")],
    ids=["uint8", "numpy"],
)
def test_a_batch_of_another_type_is_refused(x: Any, y: Any, message: str) -> None:
    with pytest.raises(BadValue, match=message):
        built().step(x, y)


# ---- files -----------------------------------------------------------------------------------------------


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    trainer = built()
    (tmp_path / "file").write_text("something")
    for use in (
        lambda: trainer.save(tmp_path),
        lambda: trainer.load(tmp_path),
        lambda: trainer.fit(vectors(), epochs=1, checkpoint=tmp_path),
    ):
        with pytest.raises(BadValue, match="is a folder: name"):
            use()
    for use in (
        lambda: trainer.save(tmp_path / "file" / "weights"),
        lambda: trainer.fit(vectors(), epochs=1, checkpoint=tmp_path / "file" / "run"),
    ):
        with pytest.raises(BadValue, match="is a file, not a folder"):
            use()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file"]


def test_checkpoints_and_saved_weights_are_distinguished(tmp_path: Path) -> None:
    trainer = built()
    trainer.save(tmp_path / "weights")
    with pytest.raises(BadValue, match=r"was written by Trainer\.save, not by a run"):
        trainer.fit(vectors(), epochs=1, checkpoint=tmp_path / "weights")
    from bpfree import Checkpoint

    trainer.fit(vectors(), epochs=1, checkpoint=Checkpoint(tmp_path / "run", every_s=0.0))
    with pytest.raises(BadValue, match=r"is the checkpoint of a run: continue it by fit"):
        trainer.load(tmp_path / "run")
    with pytest.raises(BadValue, match="saved by 'mono_forward', not by 'forward_forward'"):
        built(ForwardForward).load(tmp_path / "weights")


# ---- other inputs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X.to_sparse(), r"x is a torch.sparse_coo tensor; expected a dense tensor"),
        (X.to(torch.float8_e4m3fn), r"x is torch.float8_e4m3fn; expected float16 or wider"),
        (X[:, :0], r"x is \[16, 0\]; expected at least one value in each sample"),
    ],
)
def test_samples_of_another_tensor_type_are_refused(x: Tensor, message: str) -> None:
    trainer = built()
    for use in (lambda: trainer.fit((x, Y), epochs=1), lambda: trainer.predict(x)):
        with pytest.raises(BadValue, match=message):
            use()


def test_a_graph_is_refused_by_trainers_of_ordinary_networks() -> None:
    trainer = MonoForward(make_mlp(), progress=False)
    for use in (trainer.fit, trainer.build_for):
        with pytest.raises(BadValue, match="mono_forward trains on samples, not on nodes of a graph"):
            use(nodes())
    with pytest.raises(BadValue, match="not on nodes of a graph"):
        built().evaluate(nodes())


def test_hooks_of_another_type_are_refused() -> None:
    hooks: Any = print
    with pytest.raises(BadValue, match=r"hooks = <built-in function print>: expected bpfree.Hooks"):
        MonoForward(make_mlp(), progress=False).fit(vectors(), epochs=1, hooks=hooks)


def test_an_unknown_backend_of_the_compiler_is_refused() -> None:
    with pytest.raises(BadValue, match=r"compile = 'inductr': unknown backend .*inductor"):
        MonoForward(make_mlp(), compile="inductr", progress=False)


def test_a_layer_that_returns_a_tuple_is_refused() -> None:
    net = nn.Sequential(nn.LSTM(12, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    with pytest.raises(BadValue, match=r"the network does not accept samples of shape \(12,\)"):
        MonoForward(net, progress=False).fit(vectors(), epochs=1)


class Returning(LocalCrossEntropy):
    """Returns ``change`` of the cross-entropy."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.change = change

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Any:
        return self.change(super().forward(output, target))


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda loss: loss.expand(4), r"Returning.forward returned shape \[4\]: expected a scalar tensor"),
        (lambda loss: loss.item(), "Returning.forward returned float: expected a scalar tensor"),
        (
            lambda loss: loss.detach(),
            "Returning.forward returned a value without a gradient: compute it from `output` without detach",
        ),
    ],
)
def test_a_loss_that_cannot_be_differentiated_is_refused(
    change: Callable[[Tensor], Any], message: str, joint: bool
) -> None:
    blocks = [Block(nn.Sequential(nn.Linear(12, 12), nn.ReLU()), Returning(change)) for _ in range(2)]
    readouts = make_readouts("last", [block.loss for block in blocks])
    cascade = Cascade([JointBlock(blocks, [1.0, 1.0])] if joint else blocks, readouts)
    before = snapshot(cascade)
    with pytest.raises(BadValue, match=message):
        Local(cascade, progress=False).fit(vectors(), epochs=1)
    assert all(torch.equal(cascade.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("kind", [Backprop, MonoForward])
def test_a_network_that_ends_in_probabilities_is_warned_about_once(kind: type[Trainer]) -> None:
    net = nn.Sequential(*make_mlp(), nn.Softmax(1))
    with pytest.warns(
        UserWarning, match="the output layer ends in Softmax: cross-entropy applies a softmax"
    ) as caught:
        kind(net, progress=False).fit(vectors(33), epochs=2, batch_size=16)
    assert len(caught) == 1
    kind(nn.Sequential(*make_mlp(), nn.LogSoftmax(1)), progress=False).fit(vectors(), epochs=1)


@every
def test_one_class_is_refused(kind: type[Trainer]) -> None:
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    with pytest.raises(BadValue, match="the data have 1 class: expected at least 2"):
        kind(net, progress=False).fit((X, torch.zeros_like(Y)), epochs=1)
