"""FLOPs against numbers calculated by hand; a multiply-add is two."""

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
    """Two layers: only a global backward pass computes the input gradient of the second layer."""
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
    "addbmm": (lambda: torch.addbmm(T(3, 5), T(2, 3, 4), T(2, 4, 5)), 2 * 2 * 3 * 4 * 5),
    "addmv in place": (lambda: T(3).addmv_(T(3, 4), T(4)), 2 * 3 * 4),
    "integers": (lambda: torch._int_mm(T(32, 32, dtype=torch.int8), T(32, 32, dtype=torch.int8)), 2 * 32**3),
    "hspmm": (lambda: torch.hspmm(torch.eye(3).to_sparse(), T(3, 4)), 2 * 3 * 4),
    "sspaddmm": (
        lambda: torch.sspaddmm(torch.eye(3).to_sparse(), torch.eye(3).to_sparse(), T(3, 3)),
        2 * 3 * 3,
    ),
    "sparse reduced": (lambda: torch.sparse.mm(torch.eye(3).to_sparse_csr(), T(3, 4), "sum"), 2 * 3 * 4),
    "in blocks": (lambda: torch.eye(4).to_sparse_bsr((2, 2)) @ T(4, 5), 2 * 8 * 5),
    "conv_tbc": (lambda: torch.conv_tbc(T(6, 2, 3), T(3, 3, 5), T(5)), 2 * (4 * 2 * 5) * (3 * 3)),
    "distances": (lambda: torch.cdist(torch.randn(30, 3), torch.randn(40, 3)), 2 * 30 * 40 * (3 + 2)),
    "affine grid": (lambda: F.affine_grid(T(2, 2, 3), [2, 1, 4, 5], False), 2 * 2 * 4 * 5 * 2 * 3),
    "element-wise": (lambda: T(4) * T(4) + T(4).exp(), 0),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR")
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


def test_lu_of_rectangles_and_determinants() -> None:
    n, m = 6, 2
    assert count_flops(lambda: torch.linalg.det(2 * torch.eye(n))) == 2 * n**3 // 3
    assert count_flops(lambda: torch.linalg.slogdet(2 * torch.eye(n))) == 2 * n**3 // 3
    tall = torch.randn(n, m)
    assert count_flops(lambda: torch.linalg.lu(tall)) == m * m * (3 * n - m) // 3
    assert count_flops(lambda: torch.linalg.lu_factor(tall)) == m * m * (3 * n - m) // 3


def test_a_complex_product_is_four_real_ones() -> None:
    real, both = torch.randn(B, I), torch.randn(B, I, dtype=torch.complex64)
    assert count_flops(lambda: real @ real.T) == 2 * B * I * B
    assert count_flops(lambda: both @ both.T) == 4 * 2 * B * I * B
    assert count_flops(lambda: torch.vdot(both[0], both[1])) == 4 * 2 * I
    layer = nn.Linear(I, O, dtype=torch.complex64)
    assert count_flops(lambda: layer(both).abs().sum().backward()) == 4 * 2 * LINEAR
    conv = nn.Conv1d(2, 3, 3, dtype=torch.complex64)
    assert count_flops(lambda: conv(torch.randn(1, 2, 6, dtype=torch.complex64))) == 3 * 2 * 3 * 4 * 2 * 3


def test_two_sparse_matrices_count_the_products_that_are_made() -> None:
    a, b = (torch.rand(5, 5) < 0.4 for _ in range(2))
    made = int((a[:, :, None] & b[None]).sum())
    assert made and count_flops(lambda: a.float().to_sparse() @ b.float().to_sparse()) == 2 * made


class Net(nn.Module):
    """Most kinds of operations without FLOPs, forward and backward, and one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        act = [
            nn.ELU(),
            nn.GELU(),
            nn.SiLU(),
            nn.Mish(),
            nn.Hardswish(),
            nn.LeakyReLU(),
            nn.PReLU(),
            nn.CELU(),
        ]
        norms = [
            nn.BatchNorm2d(4),
            nn.GroupNorm(2, 4),
            nn.InstanceNorm2d(4, affine=True),
            nn.LayerNorm([4, 8, 8]),
        ]
        rest = [nn.RReLU(), nn.Softplus(), nn.Hardtanh(), nn.Softshrink(), nn.Dropout(0.1), nn.Dropout2d(0.1)]
        pools = [nn.MaxPool2d(2), nn.Upsample(scale_factor=2), nn.AvgPool2d(2), nn.ReflectionPad2d(1)]
        self.rest = nn.Sequential(*act, *norms, *rest, *pools, nn.AdaptiveMaxPool2d(3), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        x = self.rest(self.conv(x)).clamp(-9, 9)
        x = torch.cat([x.sort(1).values, x.cumsum(1), x.roll(1, 1), x[:, torch.randperm(36)]], 1)
        y = x.logsumexp(1) + x.std(1) + x.norm(dim=1) + x.topk(3).values.mean(1) + x.softmax(1).amax(1)
        y = y + torch.zeros(2).scatter_add(0, torch.tensor([0, 1]), y) + F.normalize(x).var(1)
        return (
            y + F.cross_entropy(x, torch.tensor([0, 1])) + F.smooth_l1_loss(x, x.tanh()) + F.huber_loss(x, -x)
        )


def test_element_wise_work_gathers_and_reductions_are_free() -> None:
    net = Net()
    optimizers = [
        kind(net.parameters()) for kind in (torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam)
    ]

    def step() -> None:
        net(torch.randn(2, 2, 8, 8)).sum().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()

    assert count_flops(step) == 2 * 2 * (2 * 4 * 8 * 8) * (2 * 3 * 3)


REFUSED: dict[str, Callable[[], object]] = {
    "linalg_qr": lambda: torch.linalg.qr(T(4, 2)),
    "geqrf": lambda: torch.geqrf(T(4, 2)),
    "linalg_householder_product": lambda: torch.linalg.householder_product(T(4, 2), T(2)),
    "ormqr": lambda: torch.ormqr(T(4, 2), T(2), T(4, 3)),
    "linalg_ldl_factor": lambda: torch.linalg.ldl_factor(torch.eye(3)),
    "linalg_matrix_exp": lambda: torch.linalg.matrix_exp(T(3, 3)),
    "cholesky_inverse": lambda: torch.cholesky_inverse(torch.eye(3)),
    "linalg_eig": lambda: torch.linalg.eigvals(T(3, 3)),
    "_pdist_forward": lambda: F.pdist(T(3, 4)),
    "_cdist_forward": lambda: torch.cdist(T(3, 4), T(5, 4)),
    "_trilinear": lambda: nn.Bilinear(2, 3, 4)(T(5, 2), T(5, 3)),
    "linalg_lstsq": lambda: torch.linalg.lstsq(T(4, 2), T(4, 1)),
    "_linalg_svd": lambda: torch.linalg.svd(T(4, 2)),
    "_fft_r2c": lambda: torch.fft.rfft(T(8)),
    "mkldnn_rnn_layer|_cudnn_rnn": lambda: nn.LSTM(3, 5)(T(2, 4, 3)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_heavy_work_without_a_rule_is_refused(name: str) -> None:
    with pytest.raises(BadValue, match=name):
        count_flops(REFUSED[name])
    assert count_flops(lambda: T(3, 4) @ T(4, 5)) == 120  # no mode is active after the failed count


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    count_flops(lambda: T(3, 4) @ T(4, 5))
    assert capsys.readouterr().out == ""
