"""Bytes against numbers calculated by hand; float32 takes 4 bytes."""

import gc
import resource
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bpfree._errors import BadValue, BpfreeError
from bpfree.meters import (
    device_peak,
    process_peak_rss,
    reset_device_peak,
    saved_for_backward,
    tensor_bytes,
)

ROWS = 16


@pytest.fixture(autouse=True)
def no_garbage_collector() -> Iterator[None]:
    """Bytes must be released by reference counting, because garbage collection is not deterministic."""
    gc.disable()
    yield
    gc.enable()


def mlp(*widths: int) -> nn.Sequential:
    layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("widths", [(8, 5), (8, 5, 7), (3, 9, 2, 11)])
def test_mlp_saves_its_input_and_every_activation_once(widths: tuple[int, ...]) -> None:
    """ReLU saves its output, and the next linear layer saves the same storage, which counts once."""
    net = mlp(*widths)
    x = torch.randn(ROWS, widths[0])
    with saved_for_backward() as saved:
        loss = net(x).sum()
    assert saved.live_bytes == saved.peak_bytes == 4 * ROWS * sum(widths)
    del loss
    assert saved.live_bytes == 0
    assert saved.peak_bytes == 4 * ROWS * sum(widths)


def test_backward_releases_what_it_has_used() -> None:
    x = torch.randn(ROWS, 8)
    net = mlp(8, 5)
    with saved_for_backward() as saved:
        loss = net(x).sum()
        loss.backward(retain_graph=True)
        assert saved.live_bytes == 4 * ROWS * 13
        loss.backward()
        assert saved.live_bytes == 0


def test_excluded_storage_is_not_counted() -> None:
    x = torch.randn(ROWS, 8)
    net = mlp(8, 5)
    with saved_for_backward(exclude=[x[:1]]) as saved:
        loss = net(x).sum()
    assert saved.live_bytes == 4 * ROWS * 5
    assert loss.requires_grad


def test_exclusion_does_not_apply_to_a_new_storage_at_the_same_address() -> None:
    """Only the meter refers to the excluded tensors; otherwise their addresses could be reused."""
    with saved_for_backward(exclude=(torch.ones(ROWS) for _ in range(50))) as saved:
        x = torch.ones(ROWS, requires_grad=True)
        products = [x * torch.ones(ROWS) for _ in range(50)]
    assert saved.live_bytes == 50 * 4 * ROWS
    assert len(products) == 50


def test_views_of_one_storage_count_once_and_whole() -> None:
    x = torch.randn(10, 10)
    w = torch.ones(5, requires_grad=True)
    with saved_for_backward(exclude=[w]) as saved:
        one = x[0, :5] * w
        two = x[3, 5:] * w
    assert saved.live_bytes == 4 * 100
    del one
    assert saved.live_bytes == 4 * 100
    del two
    assert saved.live_bytes == 0


def test_tensor_saved_twice_by_one_operation_counts_once() -> None:
    x = torch.randn(10, requires_grad=True)
    with saved_for_backward() as saved:
        y = x * x
    assert saved.live_bytes == 4 * 10
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, 2 * x)


def test_parameters_and_their_views_are_not_counted() -> None:
    """The input gradient of a linear layer saves the transposed weight; only x is counted."""
    layer = nn.Linear(8, 5)
    x = torch.randn(ROWS, 8, requires_grad=True)
    with saved_for_backward() as saved:
        products = layer(x), layer(x[None]), x @ layer.weight.t(), x * layer.weight[0], x[:, :5] * layer.bias
    assert saved.live_bytes == 4 * ROWS * 8
    assert all(product.requires_grad for product in products)


@pytest.mark.parametrize("depth", [4, 16, 64])
def test_local_steps_hold_one_block_and_global_backward_the_net(depth: int) -> None:
    width = 8
    net = mlp(*[width] * (depth + 1))
    x = torch.randn(ROWS, width)
    activation = 4 * ROWS * width

    with saved_for_backward() as local:
        h = x
        for block in net:
            out = block(h)
            out.sum().backward()
            h = out.detach()
            del out
    with saved_for_backward() as whole:
        net(x).sum().backward()

    assert local.peak_bytes == 2 * activation  # a block's input and its output
    assert local.live_bytes == 0
    assert whole.peak_bytes == (depth + 1) * activation
    assert whole.live_bytes == 0


def test_sequence_of_short_lived_graphs_never_adds_up() -> None:
    """Freed addresses are reused: each graph must be counted separately."""
    with saved_for_backward() as saved:
        for size in [100, 100, 50, 100, 25]:
            w = torch.ones(size, requires_grad=True)
            y = w.exp()
            assert saved.live_bytes == 4 * size
            del y
            assert saved.live_bytes == 0
    assert saved.peak_bytes == 400


def test_gradients_are_those_without_the_meter() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Flatten())
    net.append(nn.Linear(3 * 36, 4))
    x, y = torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 3, 0])

    def gradients() -> list[Tensor]:
        # Two forward passes before one backward pass: batch norm changes its buffers in between.
        loss = F.cross_entropy(net(x), y) + F.cross_entropy(net(-x), y)
        return list(torch.autograd.grad(loss, list(net.parameters())))

    plain = gradients()
    with saved_for_backward() as saved:
        metered = gradients()
    assert all(torch.equal(a, b) for a, b in zip(plain, metered, strict=True))
    assert saved.live_bytes == 0


def test_second_derivative_passes_through_the_meter() -> None:
    x = torch.tensor([2.0], requires_grad=True)
    with saved_for_backward() as saved:
        y = x.exp().pow(2)  # d2/dx2 of exp(2x) is 4 exp(2x)
        (first,) = torch.autograd.grad(y, x, create_graph=True)
        (second,) = torch.autograd.grad(first, x)
    assert torch.allclose(second, 4 * (2 * x.detach()).exp())
    del y, first
    assert saved.live_bytes == 0


def test_saved_tensor_changed_in_place_is_an_error() -> None:
    x = torch.ones(4, requires_grad=True)
    with saved_for_backward():
        y = x.exp()
        y.mul_(2)
        with pytest.raises(BpfreeError, match="modified in place"):
            y.sum().backward()


@pytest.mark.filterwarnings("ignore:.*[Ss]parse.*:UserWarning")
def test_compressed_sparse_tensors_count_both_indices_and_values() -> None:
    # Three values of 4 bytes, alone or in blocks of 2 x 3; indices of 8 bytes: a pointer for each row (or
    # column) and one more, and a number for each value.
    pointers, numbers = torch.tensor([0, 1, 3]), torch.tensor([1, 0, 1])
    values, blocks = torch.ones(3), torch.ones(3, 2, 3)
    indices = 8 * 3 + 8 * 3
    for make in (torch.sparse_csr_tensor, torch.sparse_csc_tensor):
        assert tensor_bytes([make(pointers, numbers, values, (2, 2))]) == indices + 4 * 3
    assert tensor_bytes([torch.sparse_bsr_tensor(pointers, numbers, blocks, (4, 6))]) == indices + 4 * 18
    assert tensor_bytes([torch.sparse_bsc_tensor(pointers, numbers, blocks, (4, 6))]) == indices + 4 * 18
    with pytest.raises(BadValue, match=r"torch\._mkldnn"):
        tensor_bytes([torch.ones(2).to_mkldnn()])


def test_sparse_tensors_count_indices_and_values() -> None:
    """Two nonzeros in COO: 2 x 2 indices of 8 bytes and 2 values of 4."""
    graph = torch.sparse_coo_tensor(
        torch.tensor([[0, 1], [1, 0]]), torch.ones(2), (2, 2), check_invariants=True
    )
    x = torch.ones(2, 3, requires_grad=True)
    with saved_for_backward() as saved:
        y = graph @ x
    assert saved.live_bytes == tensor_bytes([graph]) == 32 + 8
    y.sum().backward()
    assert saved.live_bytes == 0
    assert tensor_bytes([graph.coalesce()]) == 32 + 8


def test_nested_meters_are_refused() -> None:
    with saved_for_backward(), pytest.raises(BadValue, match="already active"), saved_for_backward():
        pass
    with saved_for_backward() as saved:  # no state is left of the refused and of the first context
        y = torch.ones(4, requires_grad=True).exp()
    assert saved.live_bytes == 16
    assert y.requires_grad


def test_reentrant_checkpoint_is_counted_with_its_recomputed_segment() -> None:
    """The limit in the docstring: with use_reentrant=False the recomputed segment is not counted."""
    width, activation = 8, 4 * ROWS * 8
    blocks = [mlp(width, width, width) for _ in range(4)]

    def peak(reentrant: bool) -> int:
        h = torch.randn(ROWS, width, requires_grad=True)
        with saved_for_backward() as saved:
            for block in blocks:
                h = checkpoint(block, h, use_reentrant=reentrant)
            h.sum().backward()
        assert saved.live_bytes == 0
        return saved.peak_bytes

    # The inputs of the four segments, and the two activations inside the last one.
    assert peak(reentrant=True) == (4 + 2) * activation
    assert peak(reentrant=False) == 4 * activation


def test_tensor_bytes_counts_storages_once() -> None:
    layer = nn.Linear(8, 5)
    assert tensor_bytes(layer.parameters()) == 4 * (8 * 5 + 5)
    assert tensor_bytes([layer.weight, layer.weight.t(), layer.weight[0]]) == 4 * 40
    assert tensor_bytes([torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.int8)]) == 27
    assert tensor_bytes(torch.ones(4) for _ in range(10)) == 160  # each is freed when the next is created
    assert tensor_bytes([]) == 0


def test_tensor_bytes_of_optimizer_state() -> None:
    layer = nn.Linear(8, 5)
    opt = torch.optim.Adam(layer.parameters())
    layer(torch.ones(2, 8)).sum().backward()
    opt.step()
    moments = [t for state in opt.state.values() for name, t in state.items() if name != "step"]
    assert tensor_bytes(moments) == 2 * 4 * 45


CHILD = """
from bpfree.meters import process_peak_rss
print(process_peak_rss())
block = bytearray(b"x") * (64 * 2**20)
print(process_peak_rss())
del block
print(process_peak_rss())
"""


def test_peak_rss_is_that_of_this_process() -> None:
    """A child process reports its own peak, although its parent was larger by 256 MiB."""
    mib = 2**20
    parent_block = torch.ones(256 * mib // 4)
    run = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    start, during, after = (int(line) for line in run.stdout.split())
    assert 10 * mib < start < process_peak_rss() - 128 * mib
    assert abs(during - start - 64 * mib) < mib
    assert after > during - 4 * mib  # the counters of the kernel have an error of a few pages
    del parent_block


@pytest.mark.parametrize(("platform", "unit"), [("darwin", 1), ("freebsd14", 1024)])
def test_peak_rss_is_in_bytes_whatever_the_unit_of_getrusage(
    platform: str, unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=5000))
    assert process_peak_rss() == 5000 * unit


def test_peak_rss_on_windows_is_the_peak_of_the_working_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    info = SimpleNamespace(peak_wset=7_000_000, rss=1)
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: info))
    assert process_peak_rss() == 7_000_000


def test_device_peak_is_absent_without_cuda() -> None:
    assert device_peak("cpu") == {}
    reset_device_peak("cpu")


def test_device_peak_is_absent_before_cuda_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert device_peak("cuda:0") == {}
    reset_device_peak("cuda:0")


def test_device_peak_uses_the_given_device(monkeypatch: pytest.MonkeyPatch) -> None:
    reset: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 100 + device.index)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 200 + device.index)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    assert device_peak("cuda:3") == {"peak_alloc": 103, "peak_reserved": 203}
    reset_device_peak("cuda:3")
    assert reset == [torch.device("cuda:3")]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_device_peak_on_cuda() -> None:
    base = torch.ones(1, device="cuda")
    reset_device_peak("cuda")
    before = device_peak("cuda")["peak_alloc"]
    block = torch.ones(2**20, device="cuda")
    del block
    peak = device_peak("cuda")
    assert peak["peak_alloc"] - before == 4 * 2**20
    assert peak["peak_reserved"] >= peak["peak_alloc"]
    reset_device_peak("cuda")
    assert device_peak("cuda")["peak_alloc"] == before
    del base
