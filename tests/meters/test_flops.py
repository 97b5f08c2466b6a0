"""FLOPs against numbers worked out by hand; a multiply-add is two."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpfree._errors import BadValue
from bpfree.meters import count_flops

B, I, O = 4, 3, 5
LINEAR = 2 * B * I * O


def backward(fn: Callable[[], Tensor]) -> Callable[[], None]:
    return lambda: fn().sum().backward()


def test_arguments_are_passed_and_the_call_is_real() -> None:
    weight = torch.zeros(O, I)

    def fn(x: Tensor, *, bias: Tensor) -> Tensor:
        weight.add_(1)
        return F.linear(x, weight, bias)

    assert count_flops(fn, torch.ones(B, I), bias=torch.ones(O)) == LINEAR
    assert torch.equal(weight, torch.ones(O, I))


def test_linear_backward_costs_one_product_for_each_gradient() -> None:
    layer = nn.Linear(I, O)
    x = torch.randn(B, I)
    assert count_flops(lambda: layer(x)) == LINEAR
    assert count_flops(backward(lambda: layer(x))) == 2 * LINEAR
    x.requires_grad_()
    assert count_flops(backward(lambda: layer(x))) == 3 * LINEAR


def test_detached_layers_cost_no_input_gradient() -> None:
    """Two layers: a global backward makes the second layer's input gradient, local ones do not."""
    first, second = nn.Linear(I, O), nn.Linear(O, 7)
    x = torch.randn(B, I)
    a, b = 2 * B * I * O, 2 * B * O * 7

    def local() -> None:
        h = first(x)
        h.sum().backward()
        second(h.detach()).sum().backward()

    assert count_flops(backward(lambda: second(first(x)))) == 2 * a + 3 * b
    assert count_flops(local) == 2 * a + 2 * b


def test_products_that_are_added_in_place_are_counted() -> None:
    total, a, b = torch.zeros(B, O), torch.randn(B, I), torch.randn(I, O)
    assert count_flops(total.addmm_, a, b) == LINEAR
    assert count_flops(total[None].baddbmm_, a[None], b[None]) == LINEAR


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_element_wise_optimizer_adds_nothing(optimizer: type[torch.optim.Optimizer]) -> None:
    layer = nn.Linear(I, O)
    opt = optimizer(layer.parameters(), lr=0.1)  # type: ignore[call-arg]
    x = torch.randn(B, I)
    before = layer.weight.detach().clone()

    def step() -> None:
        opt.zero_grad()
        layer(x).relu().sum().backward()
        opt.step()

    assert count_flops(step) == 2 * LINEAR
    assert not torch.equal(layer.weight, before)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_counts_without_autograd(mode: Callable[[], AbstractContextManager[None]]) -> None:
    conv, layer = nn.Conv2d(4, 8, 3), nn.Linear(I, O)

    def forward() -> None:
        with mode():
            layer(torch.ones(2, B, I))
            conv(torch.ones(2, 4, 6, 6))

    assert count_flops(forward) == 2 * LINEAR + 2 * 2 * (8 * 4 * 4) * (4 * 3 * 3)


T = torch.ones
PRODUCTS: dict[str, tuple[Callable[[], object], int]] = {
    "mm": (lambda: T(3, 4) @ T(4, 5), 2 * 3 * 4 * 5),
    "addmm": (lambda: torch.addmm(T(5), T(3, 4), T(4, 5)), 2 * 3 * 4 * 5),
    "bmm": (lambda: T(2, 3, 4) @ T(2, 4, 5), 2 * 2 * 3 * 4 * 5),
    "baddbmm": (lambda: torch.baddbmm(T(2, 3, 5), T(2, 3, 4), T(2, 4, 5)), 2 * 2 * 3 * 4 * 5),
    "einsum": (lambda: torch.einsum("bi,io->bo", T(3, 4), T(4, 5)), 2 * 3 * 4 * 5),
    "einsum batch": (lambda: torch.einsum("bij,bjk->bik", T(2, 3, 4), T(2, 4, 5)), 2 * 2 * 3 * 4 * 5),
    "mv": (lambda: T(3, 4) @ T(4), 2 * 3 * 4),
    "addmv": (lambda: torch.addmv(T(3), T(3, 4), T(4)), 2 * 3 * 4),
    "dot": (lambda: T(4) @ T(4), 2 * 4),
    "sampled": (
        lambda: torch.sparse.sampled_addmm(torch.eye(3).to_sparse_csr(), T(3, 4), T(4, 3)),
        2 * 3 * 4,
    ),
    "element-wise": (lambda: T(4) * T(4) + T(4).exp(), 0),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name: str) -> None:
    fn, flops = PRODUCTS[name]
    assert count_flops(fn) == flops


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolution(groups: int, stride: int) -> None:
    conv = nn.Conv2d(4, 8, 3, padding=1, stride=stride, groups=groups)
    x = torch.randn(2, 4, 6, 6)
    side = 6 // stride
    forward = 2 * (2 * 8 * side * side) * (4 // groups * 3 * 3)
    assert count_flops(lambda: conv(x)) == forward
    assert count_flops(backward(lambda: conv(x))) == 2 * forward
    x.requires_grad_()
    assert count_flops(backward(lambda: conv(x))) == 3 * forward
    conv.requires_grad_(False)
    assert count_flops(backward(lambda: conv(x))) == 2 * forward


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolution(groups: int) -> None:
    conv = nn.ConvTranspose2d(4, 8, 3, stride=2, groups=groups)
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    forward = 2 * (2 * 4 * 6 * 6) * (8 // groups * 3 * 3)
    assert count_flops(lambda: conv(x)) == forward
    assert count_flops(backward(lambda: conv(x))) == 3 * forward


def test_sparse_products_count_nonzeros() -> None:
    """A path of 6 nodes has 10 directed edges; features are 6 x 3."""
    edge = torch.tensor([[0, 1, 2, 3, 4, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0, 1, 2, 3, 4]])
    graph = torch.sparse_coo_tensor(edge, torch.ones(10), (6, 6), check_invariants=True)
    x = torch.ones(6, 3, requires_grad=True)
    assert count_flops(lambda: graph @ x) == 2 * 10 * 3
    assert count_flops(lambda: torch.sparse.mm(graph, x)) == 2 * 10 * 3
    assert count_flops(lambda: torch.ones(3, 6) @ graph) == 2 * 10 * 3
    assert count_flops(lambda: graph @ torch.ones(6)) == 2 * 10
    assert count_flops(backward(lambda: graph @ x)) == 2 * (2 * 10 * 3)


def test_factorizations_and_solves() -> None:
    """LU takes 2/3 n^3, Cholesky n^3/3, each triangular solve n^2 per right-hand side."""
    n, k = 6, 2
    a, b = 2 * torch.eye(n), torch.ones(n, k)
    low = torch.linalg.cholesky(a)
    lu = torch.linalg.lu_factor(a)
    assert count_flops(lambda: torch.linalg.cholesky(a)) == n**3 // 3
    assert count_flops(lambda: torch.cholesky_solve(b, low)) == 2 * n**2 * k
    assert count_flops(lambda: torch.linalg.solve(a, b)) == 2 * n**3 // 3 + 2 * n**2 * k
    assert count_flops(lambda: torch.linalg.solve(a, b[:, 0])) == 2 * n**3 // 3 + 2 * n**2
    assert count_flops(lambda: torch.linalg.solve_triangular(low, b, upper=False)) == n**2 * k
    assert count_flops(lambda: torch.linalg.lu_factor(a)) == 2 * n**3 // 3
    assert count_flops(lambda: torch.linalg.lu_solve(*lu, b)) == 2 * n**2 * k
    assert count_flops(lambda: torch.linalg.inv(a)) == 2 * n**3
    batch = a.expand(3, n, n)
    assert count_flops(lambda: torch.linalg.cholesky(batch)) == 3 * n**3 // 3


REFUSED: dict[str, Callable[[], object]] = {
    "linalg_lstsq": lambda: torch.linalg.lstsq(T(4, 2), T(4, 1)),
    "_linalg_svd": lambda: torch.linalg.svd(T(4, 2)),
    "_fft_r2c": lambda: torch.fft.rfft(T(8)),
    "mkldnn_rnn_layer|_cudnn_rnn": lambda: nn.LSTM(3, 5)(T(2, 4, 3)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_heavy_work_without_a_rule_is_refused(name: str) -> None:
    with pytest.raises(BadValue, match=name):
        count_flops(REFUSED[name])
    assert count_flops(lambda: T(3, 4) @ T(4, 5)) == 120  # the failed count left no mode on


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    count_flops(lambda: T(3, 4) @ T(4, 5))
    assert capsys.readouterr().out == ""
