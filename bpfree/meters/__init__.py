"""Meters: time, memory and FLOPs of any code, with no knowledge of trainers."""

from bpfree.meters.flops import Flops, count_flops, counting_flops
from bpfree.meters.memory import (
    SavedBytes,
    device_peak,
    process_peak_rss,
    reset_device_peak,
    saved_for_backward,
    tensor_bytes,
)
from bpfree.meters.time import Stopwatch, synchronize

__all__ = [
    "Flops",
    "SavedBytes",
    "Stopwatch",
    "count_flops",
    "counting_flops",
    "device_peak",
    "process_peak_rss",
    "reset_device_peak",
    "saved_for_backward",
    "synchronize",
    "tensor_bytes",
]
