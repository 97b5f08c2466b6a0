"""`python -m bpfree.bench doctor`: what this machine can measure, how precisely, and what is missing."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bpfree.bench.environment import environment
from bpfree.bench.files import Mapped
from bpfree.meters import EnergyMeter, Reading, device_peak, meter, process_peak_rss, synchronize
from bpfree.meters.joules import TAINT


def examine(
    device: torch.device | str | None = None,
    idle_s: float = 10.0,
    load_s: float = 15.0,
    nvml: Any = None,
    rapl_root: Path | None = None,
) -> Mapped:
    """Measure idling and matrix products; returns the results as plain data.

    Args:
        device: As for `bpfree.meters.energy`.
        idle_s: Seconds of idling before the load, and after it.
        load_s: Seconds of the load.
        nvml: Replaces the module ``pynvml``.
        rapl_root: Folder of the power capping framework.

    Raises:
        BadValue: If the device cannot be used.
    """
    with meter(device, min_s=min(load_s, 10.0), nvml=nvml, rapl_root=rapl_root) as energy_meter:
        if energy_meter.sources:
            work = _products(energy_meter.device)
            energy_meter.idle("before", idle_s)
            with energy_meter("load"):
                _for_seconds(work, energy_meter.device, load_s)
            energy_meter.idle("after", idle_s)
        resolution = time.get_clock_info("perf_counter").resolution
        readings, device_type = energy_meter.readings("load"), energy_meter.device.type
        return {
            "environment": environment(energy_meter.device, torch.get_num_threads()),
            "time": {"clock": "perf_counter", "resolution_s": resolution},
            "energy": {name: _source(energy_meter, name, reading) for name, reading in readings.items()},
            "absent": energy_meter.absent | ({} if device_type == "cuda" else {"gpu": _why_no_gpu()}),
            "modelled": f"modelled:tdp and modelled:ram_dimm, by CodeCarbon {version('codecarbon')}",
            "memory": {"rss": process_peak_rss(), **device_peak(energy_meter.device)},
        }


def _why_no_gpu() -> str:
    if torch.cuda.is_available():
        return "the CPU was chosen; --device cuda examines the GPU"
    return "torch has none here; expected an NVIDIA GPU, its driver, and a build of torch with CUDA"


def _products(device: torch.device) -> Callable[[], object]:
    size, kind = (8192, torch.float16) if device.type == "cuda" else (512, torch.float32)
    a = torch.ones(size, size, device=device, dtype=kind) / size
    return lambda: a @ a


def _for_seconds(work: Callable[[], object], device: torch.device, seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(20):
            work()
        synchronize(device)


def _source(energy_meter: EnergyMeter, name: str, reading: Reading) -> Mapped:
    values = {
        "scope": reading.scope,
        "tick_s": reading.tick_s,
        "load": reading.row(),
        "device": energy_meter.facts()[name],
    }
    idle = {"before": reading.idle_before_w, "after": reading.idle_after_w}
    if reading.gross_j is not None:
        values["load_w"] = reading.gross_j / reading.window_s
    return values | {f"idle_{when}_w": watts for when, watts in idle.items() if watts is not None}


def show(findings: Mapped, console: Console) -> None:
    """Print the result of `examine`: first what can be measured, then what cannot, with the remedy."""
    table = Table(title="what this machine can measure", title_justify="left")
    for column in ("figure", "scope", "how well"):
        table.add_column(column, overflow="fold")
    for name, values in findings["energy"].items():
        table.add_row(f"{name} energy", values["scope"], Text("\n".join(_how_well(values))))
    resolution = findings["time"]["resolution_s"]
    table.add_row("time", "measured:perf_counter", f"resolution {resolution:.0e} s, device synchronized")
    table.add_row("bytes saved for backward", "counted", "the same on every machine")
    table.add_row("FLOPs of a run", "counted", "the same on every machine")
    memory = findings["memory"]
    table.add_row("process memory", "measured:rss", f"peak so far {memory['rss'] / 2**20:.0f} MiB")
    if "peak_alloc" in memory:
        peak = memory["peak_alloc"] / 2**20
        table.add_row("device memory", "measured:allocator", f"peak so far {peak:.0f} MiB")
    table.add_row("CPU and memory energy", findings["modelled"], "a model, on request only (energy.modeled)")
    table.add_row("carbon", "kWh times a factor", "of a country, or your own (energy.country, energy.factor)")
    console.print(table)
    for name, reason in findings["absent"].items():
        console.print(Text(f"{name} energy is not measured: {reason}"), soft_wrap=True)


def _how_well(values: Mapped) -> list[str]:
    load = values["load"]
    lines = [f"tick {1000 * values['tick_s']:.1f} ms"]
    if "idle_before_w" in values and "idle_after_w" in values:
        lines.append(f"idle {values['idle_before_w']:.1f} W before, {values['idle_after_w']:.1f} W after")
    if "load_w" in values:
        lines.append(f"{values['load_w']:.1f} W over {load['window_s']:.0f} s of matrix products")
    if "ratio" in load:
        verdict = "agree" if abs(load["ratio"] - 1) <= TAINT else "DISAGREE"
        lines.append(
            f"sampled power over counter {load['ratio']:.3f} at {load['samples_hz']:.0f} Hz: they {verdict}"
        )
    lines += [f"tainted: {reason}" for reason in load.get("tainted", [])]
    lines += [f"warning: {reason}" for reason in load.get("warnings", [])]
    if "absent" in load:
        lines.append(load["absent"])
    return lines
