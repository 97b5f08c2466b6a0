"""FLOPs of a real call, by torch's counter with its gaps filled."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any, NoReturn, ParamSpec

import torch
from torch import Tensor

from bpfree._errors import BadValue

_Rule = Callable[..., int]
P = ParamSpec("P")

# Heavy operations whose cost hangs on the algorithm or hides in a fused kernel. torch would
# count them as 0.
_UNKNOWN = (
    "linalg_lstsq",
    "linalg_qr",
    "linalg_pinv",
    "linalg_eig",
    "_linalg_eigh",
    "_linalg_svd",
    "_fft_c2c",
    "_fft_r2c",
    "_fft_c2r",
    "_cdist_forward",
    "_trilinear",
    "addbmm",
    "mkldnn_rnn_layer",
    "_cudnn_rnn",
    "_native_multi_head_attention",
    "_transformer_encoder_layer_fwd",
)


class Flops:
    """FLOPs counted so far; made by :func:`counting_flops`."""

    def __init__(self, total: Callable[[], int]) -> None:
        self._total = total

    @property
    def total(self) -> int:
        """FLOPs since the ``with`` block began, also after its end."""
        return int(self._total())


@contextmanager
def counting_flops() -> Iterator[Flops]:
    """Count the FLOPs of what runs inside the ``with`` block (a multiply-add is two).

    Counted are matrix products, convolutions, attention, and Cholesky, LU and triangular solves,
    wherever they run: forward, backward, optimizer, under ``no_grad`` or ``inference_mode``.
    A product with a sparse matrix counts its nonzeros. Element-wise work, reductions, gathers and
    scatters (bias, activations, norms, the update of SGD or Adam, index-based aggregation) are
    not counted, nor is anything computed outside torch.

    Sources: ``torch.utils.flop_counter.FlopCounterMode``; Golub and Van Loan, Matrix
    Computations, 4th ed., sections 3.1, 3.2 and 4.2, for the factorizations.

    Raises:
        BadValue: a heavy operation ran that no rule covers (least squares, SVD, FFT, a fused
            recurrent layer, ...), where the count would be silently too low.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False, custom_mapping=_rules()) as counter:
        yield Flops(counter.get_total_flops)


def count_flops(fn: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> int:
    """Call ``fn(*args, **kwargs)`` for real and return its FLOPs; see :func:`counting_flops`."""
    with counting_flops() as flops:
        fn(*args, **kwargs)
    return flops.total


def _rules() -> dict[Any, _Rule]:
    """What torch's own registry lacks or counts wrongly, by operation."""
    aten = torch.ops.aten
    rules: dict[Any, _Rule] = {
        aten.convolution_backward: _convolution_backward,
        aten.dot: lambda a, b, **_: 2 * prod(a),
        aten.mv: _raw(lambda a, x, **_: _product(a, x, 1)),
        aten.addmv: _raw(lambda _c, a, x, **_: _product(a, x, 1)),
        aten.mm: _raw(lambda a, b, **_: _product(a, b, b.shape[1])),
        aten.addmm: _raw(lambda _c, a, b, **_: _product(a, b, b.shape[1])),
        # torch's counter passes over what works in place.
        aten.addmm_: _raw(lambda _c, a, b, **_: _product(a, b, b.shape[1])),
        aten.baddbmm_: lambda _c, a, b, **_: 2 * prod(a) * b[-1],
        aten.sparse_sampled_addmm: _raw(lambda c, a, _b, **_: 2 * c._nnz() * a.shape[1]),
        aten._sparse_addmm: _raw(lambda _c, a, b, **_: _product(a, b, b.shape[1])),
        aten.linalg_cholesky_ex: lambda a, **_: prod(a) * a[-1] // 3,
        aten.linalg_lu_factor_ex: lambda a, **_: 2 * prod(a) * a[-1] // 3,
        aten.linalg_inv_ex: lambda a, **_: 2 * prod(a) * a[-1],
        aten._linalg_solve_ex: _solve,
        aten.cholesky_solve: lambda b, a, *_, **__: 2 * prod(b) * a[-1],
        aten.linalg_lu_solve: lambda lu, _p, b, **_: 2 * prod(b) * lu[-1],
        aten.linalg_solve_triangular: lambda a, b, **_: prod(b) * a[-1],
    }
    return rules | {getattr(aten, name): _refuse(name) for name in _UNKNOWN}


def _raw(rule: _Rule) -> _Rule:
    """Have torch give ``rule`` the tensors, not their shapes, so that it can see nonzeros."""
    rule._get_raw = True  # type: ignore[attr-defined]
    return rule


def _product(a: Tensor, b: Tensor, columns: int) -> int:
    """FLOPs of ``a @ b`` with ``a`` (n, k), ``b`` (k, columns) or (k,), either of them sparse."""
    if a.layout != torch.strided:
        return 2 * a._nnz() * columns
    if b.layout != torch.strided:
        return 2 * b._nnz() * a.shape[0]
    return 2 * a.shape[0] * a.shape[1] * columns


def _convolution_backward(
    grad: list[int],
    x: list[int],
    weight: list[int],
    *rest: Any,
    out_shape: object = None,  # noqa: ARG001
) -> int:
    """Each gradient costs as much as the forward; torch's rule counts grouped ones too often."""
    transposed, wanted = rest[4], rest[7]
    positions = prod((x if transposed else grad)[2:])
    forward = 2 * x[0] * positions * prod(weight)
    return forward * (bool(wanted[0]) + bool(wanted[1]))


def _solve(a: list[int], b: list[int], **_: object) -> int:
    """LU of ``a`` (..., n, n), then two triangular solves for ``b`` (..., n, k) or (..., n)."""
    return 2 * prod(a) * a[-1] // 3 + 2 * prod(b) * a[-1]


def _refuse(name: str) -> _Rule:
    def rule(*_: object, **__: object) -> NoReturn:
        raise BadValue(f"no FLOP rule for aten.{name}; it would be counted as 0")

    return rule
