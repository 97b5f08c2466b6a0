"""Memory: bytes saved for backward, bytes of tensors, and peaks of process and device."""

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from bpfree._errors import BadValue, BpfreeError

_METERING: ContextVar[bool] = ContextVar("bpfree_metering_saved_tensors", default=False)


def _storages(tensor: Tensor) -> list[torch.UntypedStorage]:
    """Return the storage of a dense tensor, or the storages of the parts of a sparse tensor."""
    parts: tuple[Tensor, ...]
    if tensor.layout == torch.strided:
        parts = (tensor,)
    elif tensor.layout == torch.sparse_coo:
        parts = (tensor._indices(), tensor._values())
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        parts = (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
    else:
        raise BadValue(f"cannot count the bytes of a tensor with layout {tensor.layout}")
    return [part.untyped_storage() for part in parts]


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the number of bytes in all distinct storages of ``tensors``.

    Views, tied weights and repeated tensors count once. The entire storage of a view counts, because all of
    it is allocated.

    Raises:
        BadValue: If a tensor has a layout other than dense or sparse.
    """
    sizes = {}
    held = []
    for tensor in tensors:
        for storage in _storages(tensor):
            held.append(storage)  # the address of a freed storage could be reused
            sizes[storage._cdata] = storage.nbytes()
    return sum(sizes.values())


class _Packed:
    """Replaces a saved tensor in the graph; its storages are reported when it is deleted."""

    __slots__ = ("_dropped", "_keys", "tensor", "version")

    def __init__(self, tensor: Tensor, keys: tuple[int, ...], dropped: deque[tuple[int, ...]]) -> None:
        # Detached, because a saved output with its own grad_fn would form a reference cycle.
        self.tensor = tensor.detach()
        self.version = tensor._version
        self._keys = keys
        self._dropped = dropped

    def __del__(self) -> None:
        # May run in any thread, even during an update: it must not use the lock.
        self._dropped.append(self._keys)


class SavedBytes:
    """Bytes that autograd has saved for backward, see `saved_for_backward`."""

    def __init__(self, exclude: Iterable[Tensor] = ()) -> None:
        # A storage is identified by its address, which is unique while the storage exists: references to the
        # excluded ones are here, those to the counted ones in the _Packed objects of the graph.
        self._held = [storage for tensor in exclude for storage in _storages(tensor)]
        self._excluded = {storage._cdata for storage in self._held}
        self._uses: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._dropped: deque[tuple[int, ...]] = deque()
        self._lock = Lock()
        self._live = 0
        self._peak = 0

    @property
    def live_bytes(self) -> int:
        """Bytes that are saved now in graphs built in the ``with`` block, also after its end."""
        with self._lock:
            self._release()
            return self._live

    @property
    def peak_bytes(self) -> int:
        """Largest number of bytes that were saved at one time."""
        return self._peak

    def _pack(self, tensor: Tensor) -> _Packed:
        keys: tuple[int, ...] = ()
        # torch saves the transposed weight of a linear layer, which is a view of the weight.
        if not isinstance(tensor, nn.Parameter) and not isinstance(tensor._base, nn.Parameter):
            storages = [s for s in _storages(tensor) if s._cdata not in self._excluded]
            keys = tuple(storage._cdata for storage in storages)
            with self._lock:
                self._release()
                for storage in storages:
                    self._hold(storage)
        return _Packed(tensor, keys, self._dropped)

    def _unpack(self, packed: _Packed) -> Tensor:
        # torch checks this only for tensors that are saved without hooks.
        if packed.tensor._version != packed.version:
            raise BpfreeError(
                f"a tensor of shape {tuple(packed.tensor.shape)} needed by backward was modified in place: "
                f"version {packed.tensor._version}, expected {packed.version}"
            )
        return packed.tensor

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._uses:
            self._uses[key] = 0
            self._sizes[key] = storage.nbytes()
            self._live += self._sizes[key]
            self._peak = max(self._peak, self._live)
        self._uses[key] += 1

    def _release(self) -> None:
        while self._dropped:
            for key in self._dropped.popleft():
                self._uses[key] -= 1
                if self._uses[key] == 0:
                    del self._uses[key]
                    self._live -= self._sizes.pop(key)


@contextmanager
def saved_for_backward(*, exclude: Iterable[Tensor] = ()) -> Iterator[SavedBytes]:
    """Context manager: count the bytes that autograd saves for backward inside.

    The entire storage counts, once for any number of saved tensors and views, until the graph frees the last
    of them. The peak of a step with one backward pass per block is that of the largest block; the peak of a
    global backward pass is that of the net. The result does not depend on the machine and needs no GPU.

    Parameters and views of them are not counted. All other saved tensors are: activations, the batch and the
    labels, the buffers of batch normalization. Use ``exclude`` for others that should not count.

    Not counted, because autograd does not save them: gradients, attributes that a custom ``Function`` sets on
    its context, and tensors under other saved-tensor hooks, such as the recomputed segment of
    ``torch.utils.checkpoint`` with ``use_reentrant=False``. With ``use_reentrant=True`` the recomputed
    segment is counted.

    Source: ``torch.autograd.graph.saved_tensors_hooks``.

    Args:
        exclude: Tensors whose storages are not counted.

    Raises:
        BadValue: If it is used inside itself (the inner context would hide tensors from the outer one), or a
            saved tensor has a layout other than dense or sparse.
        BpfreeError: In backward, if a saved tensor was modified in place after it was saved.
    """
    if _METERING.get():
        raise BadValue("saved_for_backward() is already active; use only one at a time")
    meter = SavedBytes(exclude)
    token = _METERING.set(True)
    try:
        with saved_tensors_hooks(meter._pack, meter._unpack):
            yield meter
    finally:
        _METERING.reset(token)


class Allocated:
    """Result of `allocated_on_cpu`.

    Attributes:
        peak_bytes: Largest number of bytes that were allocated at one time in the block, without those that
            were allocated before. Available after the end of the block.
    """

    peak_bytes: int = 0


@contextmanager
def allocated_on_cpu() -> Iterator[Allocated]:
    """Context manager: measure the peak of the bytes allocated by PyTorch's CPU allocator inside.

    All tensor storages count: activations, gradients, optimizer state, temporary tensors. Memory that
    libraries allocate themselves (such as packed matrices) and Python objects do not count. Unlike the
    resident set of the process, the result does not depend on earlier allocations.

    Source: the memory events of ``torch.profiler``.
    """
    from torch.profiler import ProfilerActivity, profile

    allocated = Allocated()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield allocated
    results = profiler.profiler
    assert results is not None and results.kineto_results is not None
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    live = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.device_type().name == "CPU":
            live += event.nbytes()
            allocated.peak_bytes = max(allocated.peak_bytes, live)


def process_peak_rss() -> int:
    """Return the peak resident set size of this process in bytes, with an error of a few pages.

    On Linux it is ``VmHWM`` of ``/proc/self/status``. ``ru_maxrss`` of getrusage(2) is not reset by exec, so
    a child process would report the peak of its parent.
    """
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    if sys.platform == "linux":
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024  # always in kB, proc_pid_status(5)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _has_peak(device: torch.device) -> bool:
    # Before CUDA is initialized, the peaks are zeros that are not measurements.
    return device.type == "cuda" and bool(torch.cuda.is_initialized())


def device_peak(device: torch.device | str) -> dict[str, int]:
    """Return the peaks of PyTorch's CUDA allocator in bytes since the last reset.

    Returns:
        ``peak_alloc`` (used by tensors) and ``peak_reserved`` (reserved by the allocator). Empty if the
        device is not a CUDA device, or CUDA is not initialized in this process.
    """
    device = torch.device(device)
    if not _has_peak(device):
        return {}
    return {
        "peak_alloc": torch.cuda.max_memory_allocated(device),
        "peak_reserved": torch.cuda.max_memory_reserved(device),
    }


def reset_device_peak(device: torch.device | str) -> None:
    """Reset the peaks of `device_peak` to the present values; no effect without CUDA."""
    device = torch.device(device)
    if _has_peak(device):
        torch.cuda.reset_peak_memory_stats(device)
