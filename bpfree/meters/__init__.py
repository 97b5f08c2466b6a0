"""Meters of time, memory, FLOPs, energy and carbon for any code; they do not depend on the trainers."""

from bpfree._renamed import module_getattr
from bpfree.meters.emissions import Factor, ModeledEnergy, carbon, factor, modeled_energy
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
    "ModeledEnergy",
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
    "modeled_energy",
    "process_peak_rss",
    "reset_device_peak",
    "saved_for_backward",
    "synchronize",
    "tensor_bytes",
]

__getattr__ = module_getattr(__name__, {"Modelled": "ModeledEnergy", "modelled": "modeled_energy"})
