"""Meters: time, memory, FLOPs, energy and carbon of any code, with no knowledge of trainers."""

from bpfree.meters.emissions import Factor, Modelled, carbon, factor, modelled
from bpfree.meters.flops import Flops, count_flops, counting_flops
from bpfree.meters.joules import EnergyMeter, Reading
from bpfree.meters.measuring import energy, energy_per_call, meter
from bpfree.meters.memory import (
    Allocated,
    SavedBytes,
    allocated_on_cpu,
    device_peak,
    process_peak_rss,
    reset_device_peak,
    saved_for_backward,
    tensor_bytes,
)
from bpfree.meters.sources import CPU, GPU
from bpfree.meters.time import Stopwatch
from bpfree.meters.windows import Windows, synchronize

__all__ = [
    "CPU",
    "GPU",
    "Allocated",
    "EnergyMeter",
    "Factor",
    "Flops",
    "Modelled",
    "Reading",
    "SavedBytes",
    "Stopwatch",
    "Windows",
    "allocated_on_cpu",
    "carbon",
    "count_flops",
    "counting_flops",
    "device_peak",
    "energy",
    "energy_per_call",
    "factor",
    "meter",
    "modelled",
    "process_peak_rss",
    "reset_device_peak",
    "saved_for_backward",
    "synchronize",
    "tensor_bytes",
]
