"""FLOPs of a call, by the counter of torch with additional and corrected rules."""

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from functools import cache
from math import prod
from typing import Any, ParamSpec

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bpfree._errors import BadValue

_Rule = Callable[..., int]
P = ParamSpec("P")

# Operations that are not products and count as 0: element-wise operations (torch tags most of them), views
# and copies, gathers and scatters, reductions, sorting, pooling, interpolation, random numbers, losses,
# normalization, optimizers. The names have no underscores at their ends and no `_backward` and `_copy`. An
# operation that is not listed, not tagged and has no rule is refused, so that a new operation of torch is not
# counted as 0.
_FREE = frozenset(
    """
    abs add add_relu addr affine_quantized alias all allclose amax amin aminmax any arange argmax argmin
    assert_async assert_scalar assert_tensor_metadata binary_cross_entropy binary_cross_entropy_with_logits
    bincount binomial block_diag bucketize cat ccol_indices channel_shuffle chunk_cat clone coalesce coalesced
    col2im col_indices complex conj conj_physical copy copy_from copy_from_and_resize copy_sparse_to_sparse
    count_nonzero crow_indices ctc_loss cudnn_ctc_loss cudnn_init_dropout_state cudnn_rnn_flatten_weight
    cummax cummax_helper cummin cummin_helper cumprod cumsum dense_dim dequantize detach dimI dimV
    dirichlet_grad dist efficientzerotensor expand eye fft_fftfreq fft_rfftfreq fill flip from_file fw_primal
    functional_assert_async functional_assert_scalar functional_sym_constrain_range
    functional_sym_constrain_range_for_size gather gelu glu_backward_jvp glu_jvp has_same_storage_numel
    hash_tensor histc histogram histogramdd_bin_edges histogramdd_from_bin_cts histogramdd_from_bin_tensors
    huber_loss im2col int_repr is_all_true is_any_true is_coalesced is_pinned is_same_size is_set_to isin
    isinf isnan kthvalue lazy_clone lift lift_fresh linalg_check_errors linalg_cross linalg_powsum
    linalg_vector_norm linspace local_scalar_dense log_sigmoid_forward log_softmax logcumsumexp
    logspace logsumexp lu_unpack make_dual masked_fill masked_scale masked_scatter masked_select
    masked_softmax max mean median min miopen_batch_norm miopen_ctc_loss mkldnn_reorder_conv2d_weight
    mkldnn_reorder_conv3d_weight mkldnn_reshape mkldnn_transpose mode mse_loss nanmedian nansum narrow
    native_dropout native_group_norm native_layer_norm native_norm neg_view nnz nonzero nonzero_static norm
    pack_padded_sequence permute pin_memory pixel_shuffle pixel_unshuffle polar prelu_kernel print prod put
    q_per_channel_axis q_per_channel_scales q_per_channel_zero_points q_scale q_zero_point qscheme range
    record_stream renorm repeat repeat_interleave reshape reshape_alias resize resize_as resize_as_sparse
    resize_output roll rot90 row_indices rrelu_with_noise rrelu_with_noise_functional safe_softmax
    sample_dirichlet scalar_tensor searchsorted segment_reduce set shallow_copy_data smooth_l1_loss
    soft_margin_loss softmax softmax_backward_data log_softmax_backward_data sort sparse_broadcast_to
    sparse_csr_prod sparse_csr_sum sparse_dim sparse_log_softmax sparse_log_softmax_backward_data sparse_mask
    sparse_mask_projection sparse_softmax sparse_softmax_backward_data sparse_sum spdiags split
    split_with_sizes squeeze stack standard_gamma standard_gamma_grad std std_mean sum sym_constrain_range
    sym_constrain_range_for_size t take thnn_fused_gru_cell thnn_fused_lstm_cell
    thnn_fused_lstm_cell_backward_impl to to_dense to_mkldnn to_padded_tensor topk trace transpose tril
    tril_indices triu triu_indices unbind unfold unique unique2 unique_consecutive unique_dim
    unique_dim_consecutive unsafe_split unsafe_split_with_sizes unsafe_view unsqueeze use_cudnn_ctc_loss
    use_miopen_ctc_loss validate_compressed_sparse_indices values var var_mean view view_as_complex
    view_as_real weight_norm_interface where zero fused_sdp_choice fused_rms_norm fused_dropout
    bitwise_and bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor celu copysign div elu eq
    fill_mem_eff_dropout_mask floor_divide gcd ge glu gt hardshrink hardsigmoid hardswish hardtanh heaviside
    indices irshift jagged_to_padded_dense_forward lcm le leaky_relu linalg__powsum log_sigmoid lshift lt mish
    mul ne padded_dense_to_jagged_forward quantized_batch_norm relu remainder rshift rsub softplus softshrink
    sub threshold xlogy
    """.split()  # noqa: SIM905 (a list of two hundred quoted names is no easier to read)
)
_FREE_FAMILIES = tuple(
    """
    adaptive_ amp_ as_strided avg_pool bartlett batch_norm bernoulli blackman cauchy constant_pad
    convert_indices cudnn_batch_norm cudnn_grid_sampler diag embedding empty exponential fake_quantize
    foreach fractional_max_pool full fused_ada fused_moving_avg fused_sgd geometric grid_sampler hamming
    hann index kaiser log_normal make_per_ max_pool max_unpool mkldnn_adaptive mkldnn_max_pool
    multi_margin multilabel_margin multinomial native_batch_norm nested_ new_ nll_loss normal ones philox_
    poisson quantize_per_ quantized_max_pool rand reflection_pad replication_pad scatter select slice
    sparse_compressed_tensor sparse_coo_tensor sparse_resize to_sparse uniform unsafe_index
    unsafe_masked_index upsample_ zeros
    """.split()  # noqa: SIM905
)

# Products with the prefix of such a family.
_NOT_FREE = frozenset({"foreach_mm", "to_sparse_semi_structured"})


class Flops:
    """FLOPs counted so far, see `counting_flops`."""

    def __init__(self, total: Callable[[], int]) -> None:
        self._total = total

    @property
    def total(self) -> int:
        """FLOPs since the beginning of the ``with`` block."""
        return int(self._total())


@contextmanager
def counting_flops() -> Iterator[Flops]:
    """Context manager: count the FLOPs of torch operations inside (a multiply-add is two).

    Matrix products, convolutions, attention, and Cholesky, LU and triangular solves are counted in the
    forward pass, the backward pass and the optimizer, also under ``no_grad`` and ``inference_mode``. A
    product with a sparse matrix counts its nonzeros. A complex product counts as four real products (a
    complex convolution as three, as torch computes it). Element-wise operations, reductions, gathers and
    scatters (bias, activations, normalization, the update of SGD or Adam, index-based aggregation) are not
    counted, nor is work outside torch. Operations of other packages need a formula registered with
    ``torch.utils.flop_counter.register_flop_formula``.

    Sources: ``torch.utils.flop_counter.FlopCounterMode``; Golub and Van Loan, Matrix Computations, 4th ed.,
    sections 3.1, 3.2 and 4.2, for the factorizations.

    Raises:
        BadValue: If an operation has no rule and is not known to be free (least squares, SVD, QR, FFT, a
            fused recurrent layer, a quantized layer, ...), so that the count would be too low.
    """
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False, custom_mapping=_rules())
    # The counter decomposes composite operations; the outer mode receives the resulting operations.
    with _RefuseUnknown(counter.flop_registry), counter:
        yield Flops(counter.get_total_flops)


def count_flops(fn: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> int:
    """Call ``fn(*args, **kwargs)`` and return its FLOPs; see `counting_flops`."""
    with counting_flops() as flops:
        fn(*args, **kwargs)
    return flops.total


class _RefuseUnknown(TorchDispatchMode):
    """Raises if an operation has no rule and is not known to be free."""

    def __init__(self, rules: Container[object]) -> None:
        super().__init__()
        self._rules = rules

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        if not isinstance(func, HigherOrderOperator) and func._overloadpacket not in self._rules:
            with self:
                result = func.decompose(*args, **kwargs or {})
            if result is not NotImplemented:
                return result
            _refuse_unknown(func)
        return func(*args, **kwargs or {})


@cache
def _refuse_unknown(func: Any) -> None:
    root = func._schema.name.partition("::")[2].strip("_")
    root = root.removesuffix("_backward").removesuffix("_copy").strip("_")
    known = func.namespace in ("prim", "profiler", "c10d", "_c10d_functional") or (
        func.namespace == "aten"
        and (root in _FREE or root.startswith(_FREE_FAMILIES))
        and root not in _NOT_FREE
    )
    if not (known or func.is_view or torch.Tag.pointwise in func.tags):
        raise BadValue(
            f"no FLOP rule for {func._schema.name.replace('::', '.')}; it would be counted as 0: register "
            "one with torch.utils.flop_counter.register_flop_formula"
        )


def _rules() -> dict[object, _Rule]:
    """Return all rules by operation: those of torch, and `_own_rules`."""
    from torch.utils.flop_counter import flop_registry, shape_wrapper

    additional = {
        op: rule if hasattr(rule, "_get_raw") else shape_wrapper(rule) for op, rule in _own_rules().items()
    }
    return {op: _raw(_complex(rule)) for op, rule in {**flop_registry, **additional}.items()}


def _complex(rule: _Rule) -> _Rule:
    """Multiply the count by 4 for complex numbers."""

    def counted(*args: object, out_val: object = None, **kwargs: object) -> int:
        count = rule(*args, out_val=out_val, **kwargs)
        is_complex = any(
            isinstance(x, Tensor) and x.is_complex() for x in tree_leaves((args, kwargs, out_val))
        )
        return 4 * count if is_complex else count

    return counted


def _own_rules() -> dict[object, _Rule]:
    """Return rules for operations that the registry of torch does not contain or counts wrongly."""
    aten = torch.ops.aten
    addmm = _raw(lambda _c, a, b, **_: _product(a, b, b.shape[1]))
    addmv = _raw(lambda _c, a, x, **_: _product(a, x, 1))
    spmm = _raw(lambda a, b, *_, **__: _product(a, b, b.shape[1]))
    rules: dict[object, _Rule] = {
        aten.convolution_backward: _convolution_backward,
        aten.dot: lambda a, b, **_: 2 * prod(a),
        aten.mv: _raw(lambda a, x, **_: _product(a, x, 1)),
        aten.vdot: lambda a, b, **_: 2 * prod(a),
        aten.mm: spmm,
        aten._int_mm: spmm,
        aten.hspmm: spmm,
        aten._sparse_sparse_matmul: spmm,
        aten._sparse_mm_reduce_impl: spmm,
        aten.addmm: addmm,
        aten._addmm_activation: addmm,
        aten._sparse_addmm: addmm,
        aten.sspaddmm: addmm,
        aten.addmv: addmv,
        aten.addbmm: lambda _c, a, b, **_: 2 * prod(a) * b[-1],
        # The counter of torch ignores in-place operations.
        aten.addmm_: addmm,
        aten.addmv_: addmv,
        aten.addbmm_: lambda _c, a, b, **_: 2 * prod(a) * b[-1],
        aten.baddbmm_: lambda _c, a, b, **_: 2 * prod(a) * b[-1],
        aten.sparse_sampled_addmm: _raw(lambda c, a, _b, **_: 2 * _stored(c) * a.shape[1]),
        # Computed as one product of the rows, extended by their squares and by ones.
        aten._euclidean_dist: lambda a, *_, out_shape, **__: 2 * prod(out_shape) * (a[-1] + 2),
        aten.conv_tbc: lambda _x, weight, *_, out_shape, **__: 2 * prod(out_shape) * weight[0] * weight[1],
        aten.affine_grid_generator: lambda *_, out_shape, **__: 2 * prod(out_shape) * (out_shape[-1] + 1),
        aten.linalg_cholesky_ex: lambda a, **_: prod(a) * a[-1] // 3,
        aten.linalg_lu_factor_ex: lambda a, **_: _lu(a),
        aten.linalg_lu: lambda a, **_: _lu(a),
        aten._linalg_det: lambda a, **_: _lu(a),
        aten._linalg_slogdet: lambda a, **_: _lu(a),
        aten.linalg_inv_ex: lambda a, **_: 2 * prod(a) * a[-1],
        aten._linalg_solve_ex: _solve,
        aten.cholesky_solve: lambda b, a, *_, **__: 2 * prod(b) * a[-1],
        aten.linalg_lu_solve: lambda lu, _p, b, **_: 2 * prod(b) * lu[-1],
        aten.linalg_solve_triangular: lambda a, b, **_: prod(b) * a[-1],
    }
    return rules


def _raw(rule: _Rule) -> _Rule:
    """Mark ``rule`` so that torch passes tensors and not shapes, which is needed to count nonzeros."""
    setattr(rule, "_get_raw", True)  # noqa: B010 (a function has no such attribute for a type checker)
    return rule


def _product(a: Tensor, b: Tensor, columns: int) -> int:
    """Return the FLOPs of ``a @ b`` with ``a`` (n, k) and ``b`` (k, columns) or (k,), dense or sparse."""
    if a.layout != torch.strided and b.layout != torch.strided:
        # Each entry of a is multiplied by the entries in one row of b, the row of its column index.
        rows = torch.bincount(b.to_sparse_coo()._indices()[0], minlength=b.shape[0])
        return 2 * int(rows[a.to_sparse_coo()._indices()[1]].sum())
    if a.layout != torch.strided:
        return 2 * _stored(a) * columns
    if b.layout != torch.strided:
        return 2 * _stored(b) * a.shape[0]
    return 2 * a.shape[0] * a.shape[1] * columns


def _stored(a: Tensor) -> int:
    """Return the number of stored entries of a sparse matrix."""
    return (a._values() if a.layout == torch.sparse_coo else a.values()).numel()


def _lu(a: list[int]) -> int:
    """Return the FLOPs of LU of matrices (..., m, n): n^2 (m - n/3) for m >= n."""
    few, many = sorted(a[-2:])
    return prod(a[:-2]) * few * few * (3 * many - few) // 3


def _convolution_backward(
    grad: list[int],
    x: list[int],
    weight: list[int],
    *rest: Any,
    out_shape: object = None,  # noqa: ARG001
) -> int:
    """Each gradient costs as much as the forward pass; torch's rule is wrong for grouped convolutions."""
    transposed, output_mask = rest[4], rest[7]
    positions = prod((x if transposed else grad)[2:])
    forward = 2 * x[0] * positions * prod(weight)
    return forward * (bool(output_mask[0]) + bool(output_mask[1]))


def _solve(a: list[int], b: list[int], **_: object) -> int:
    """LU of ``a`` (..., n, n), then two triangular solves for ``b`` (..., n, k) or (..., n)."""
    return _lu(a) + 2 * prod(b) * a[-1]
