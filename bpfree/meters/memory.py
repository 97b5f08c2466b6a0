"""Memory: bytes saved for backward, bytes of tensors, and the peaks of process and device."""

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
    """The storages behind a tensor: one if it is dense, those of its parts if it is sparse."""
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
    """Bytes of all distinct storages behind ``tensors``, of any shape.

    Views, tied weights and a tensor named twice count once. A storage counts whole, also where
    only a view of it is given, because that is what stays allocated.

    Raises:
        BadValue: a tensor has a layout other than dense or sparse.
    """
    sizes = {}
    held = []
    for tensor in tensors:
        for storage in _storages(tensor):
            held.append(storage)  # a storage freed meanwhile could pass its key on to another
            sizes[storage._cdata] = storage.nbytes()
    return sum(sizes.values())


class _Packed:
    """What the graph holds instead of a saved tensor; it reports its storages when dropped."""

    __slots__ = ("_dropped", "_keys", "tensor", "version")

    def __init__(self, tensor: Tensor, keys: tuple[int, ...], dropped: deque[tuple[int, ...]]) -> None:
        # Detached, because a saved output that kept its own grad_fn would never be freed.
        self.tensor = tensor.detach()
        self.version = tensor._version
        self._keys = keys
        self._dropped = dropped

    def __del__(self) -> None:
        # Any thread, even in the middle of another update: no lock and no sum here.
        self._dropped.append(self._keys)


class SavedBytes:
    """Bytes that autograd holds for backward; made by :func:`saved_for_backward`."""

    def __init__(self, exclude: Iterable[Tensor] = ()) -> None:
        # A storage is known by its address, which only a living storage owns: the excluded
        # ones are held here, the counted ones by the _Packed objects of the graph.
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
        """Bytes held now by graphs built under the meter, also after its ``with`` block."""
        with self._lock:
            self._release()
            return self._live

    @property
    def peak_bytes(self) -> int:
        """The most bytes that were held at one time."""
        return self._peak

    def _pack(self, tensor: Tensor) -> _Packed:
        keys: tuple[int, ...] = ()
        # torch saves the transpose of a linear layer's weight: a view, with the weight as its base.
        if not isinstance(tensor, nn.Parameter) and not isinstance(tensor._base, nn.Parameter):
            storages = [s for s in _storages(tensor) if s._cdata not in self._excluded]
            keys = tuple(storage._cdata for storage in storages)
            with self._lock:
                self._release()
                for storage in storages:
                    self._hold(storage)
        return _Packed(tensor, keys, self._dropped)

    def _unpack(self, packed: _Packed) -> Tensor:
        # torch makes this check itself only for tensors saved without hooks.
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
    """Count the bytes that autograd saves for backward inside the ``with`` block.

    A storage counts once, whole, however many tensors and views of it are saved, from its first
    saving until the graph drops the last of them. So the peak of a step that runs backward block
    by block is that of its largest block, and the peak of a global backward is that of the net.
    The figure is the same on every machine, and needs no GPU.

    ``nn.Parameter`` and views of them are left out. Whatever else is saved counts: activations,
    the batch and the labels, the buffers of a batch norm. Give to ``exclude`` what should not.

    Not seen, because autograd does not hold it: gradients, what a custom ``Function`` keeps as a
    plain attribute of its context, and what runs under other saved-tensor hooks, which is the
    recomputed segment of ``torch.utils.checkpoint`` with ``use_reentrant=False``; with
    ``use_reentrant=True`` the recomputed segment is counted.

    Source: ``torch.autograd.graph.saved_tensors_hooks``.

    Args:
        exclude: tensors, known by their storages, that are not counted.

    Raises:
        BadValue: a meter is already on (the inner one would hide its tensors from the outer),
            or a saved tensor has a layout other than dense or sparse.
        BpfreeError: in backward, a saved tensor was modified in place after it was saved.
    """
    if _METERING.get():
        raise BadValue("saved_for_backward() is already on; the outer meter would miss what the inner sees")
    meter = SavedBytes(exclude)
    token = _METERING.set(True)
    try:
        with saved_tensors_hooks(meter._pack, meter._unpack):
            yield meter
    finally:
        _METERING.reset(token)


class Allocated:
    """What was allocated in the ``with`` block of :func:`allocated_on_cpu`.

    Attributes:
        peak_bytes: the most that was held at one time, beyond what was there when the block began;
            known when it has ended.
    """

    peak_bytes: int = 0


@contextmanager
def allocated_on_cpu() -> Iterator[Allocated]:
    """Measure the peak of the bytes that PyTorch's CPU allocator hands out inside the ``with`` block.

    Everything that lives in a tensor's storage counts: activations, gradients, optimizer state made
    inside, scratch tensors. What libraries allocate for themselves (the packing of a matrix product)
    does not, nor do Python objects. Unlike the resident set of the process it does not depend on
    what ran before.

    Source: the memory events of ``torch.profiler``.
    """
    from torch.profiler import ProfilerActivity, profile

    found = Allocated()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield found
    results = profiler.profiler
    assert results is not None and results.kineto_results is not None
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    live = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.device_type().name == "CPU":
            live += event.nbytes()
            found.peak_bytes = max(found.peak_bytes, live)


def process_peak_rss() -> int:
    """The largest resident set that this process has had, in bytes, to within some pages.

    On Linux it is ``VmHWM`` of ``/proc/self/status``: the ``ru_maxrss`` of getrusage(2) survives
    exec, so that a small child of a large process would report its parent's peak.
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
    # Before its first use CUDA reports zeros, which would pass for a measurement.
    return device.type == "cuda" and bool(torch.cuda.is_initialized())


def device_peak(device: torch.device | str) -> dict[str, int]:
    """Peaks of PyTorch's CUDA allocator in bytes since the last reset.

    Returns:
        ``peak_alloc`` (held by tensors) and ``peak_reserved`` (held by the allocator); empty for
        a device that is not CUDA, and for CUDA not yet used by this process.
    """
    device = torch.device(device)
    if not _has_peak(device):
        return {}
    return {
        "peak_alloc": torch.cuda.max_memory_allocated(device),
        "peak_reserved": torch.cuda.max_memory_reserved(device),
    }


def reset_device_peak(device: torch.device | str) -> None:
    """Let :func:`device_peak` start anew from what is allocated now; nothing to do without CUDA."""
    device = torch.device(device)
    if _has_peak(device):
        torch.cuda.reset_peak_memory_stats(device)
