"""`python -m bpfree.bench doctor`: what this machine can measure, how well, and what to do for more."""

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
from bpfree.meters import EnergyMeter, Reading, device_peak, meter, process_peak_rss, synchronize
from bpfree.meters.joules import TAINT

Found = dict[str, Any]


def examine(
    device: torch.device | str | None = None,
    idle_s: float = 10.0,
    load_s: float = 15.0,
    nvml: Any = None,
    rapl_root: Path | None = None,
) -> Found:
    """Meter some idling and some matrix products, and say what came of it, as plain data.

    Args:
        device: As for `bpfree.meters.energy`.
        idle_s: Seconds of idling before the load, and after it.
        load_s: Seconds of the load.
        nvml: Stands for the module ``pynvml``.
        rapl_root: Folder of the power capping framework.

    Raises:
        BadValue: The device cannot be used.
    """
    with meter(device, min_s=min(load_s, 10.0), nvml=nvml, rapl_root=rapl_root) as found:
        if found.sources:
            work = _products(found.device)
            found.idle("before", idle_s)
            with found("load"):
                _for_seconds(work, found.device, load_s)
            found.idle("after", idle_s)
        resolution = time.get_clock_info("perf_counter").resolution
        readings = found.readings("load")
        return {
            "environment": environment(found.device, torch.get_num_threads()),
            "time": {"clock": "perf_counter", "resolution_s": resolution},
            "energy": {name: _source(found, name, reading) for name, reading in readings.items()},
            "absent": found.absent | ({} if found.device.type == "cuda" else {"gpu": _why_no_gpu()}),
            "modelled": f"modelled:tdp and modelled:ram_dimm, by CodeCarbon {version('codecarbon')}",
            "memory": {"rss": process_peak_rss(), **device_peak(found.device)},
        }


def _why_no_gpu() -> str:
    if torch.cuda.is_available():
        return "the CPU was asked for; --device cuda examines the GPU"
    return "torch sees none here; it takes an NVIDIA GPU, its driver, and a build of torch with CUDA"


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


def _source(found: EnergyMeter, name: str, reading: Reading) -> Found:
    said = {
        "scope": reading.scope,
        "tick_s": reading.tick_s,
        "load": reading.row(),
        "device": found.facts()[name],
    }
    idle = {"before": reading.idle_before_w, "after": reading.idle_after_w}
    if reading.gross_j is not None:
        said["load_w"] = reading.gross_j / reading.window_s
    return said | {f"idle_{when}_w": watts for when, watts in idle.items() if watts is not None}


def show(found: Found, console: Console) -> None:
    """Print what `examine` found, what can be measured first, then what cannot and what to do."""
    table = Table(title="what this machine can measure", title_justify="left")
    for column in ("figure", "scope", "how well"):
        table.add_column(column, overflow="fold")
    for name, said in found["energy"].items():
        table.add_row(f"{name} energy", said["scope"], Text("\n".join(_how_well(said))))
    resolution = found["time"]["resolution_s"]
    table.add_row("time", "measured:perf_counter", f"resolution {resolution:.0e} s, device synchronised")
    table.add_row("bytes saved for backward", "counted", "the same on every machine")
    table.add_row("FLOPs of a run", "counted", "the same on every machine")
    table.add_row("process memory", "measured:rss", f"peak so far {found['memory']['rss'] / 2**20:.0f} MiB")
    if "peak_alloc" in found["memory"]:
        peak = found["memory"]["peak_alloc"] / 2**20
        table.add_row("device memory", "measured:allocator", f"peak so far {peak:.0f} MiB")
    table.add_row("CPU and memory energy", found["modelled"], "a model, on request only (energy.modelled)")
    table.add_row("carbon", "kWh times a factor", "of a country, or your own (energy.country, energy.factor)")
    console.print(table)
    for name, reason in found["absent"].items():
        console.print(Text(f"{name} energy is not measured: {reason}"), soft_wrap=True)


def _how_well(said: Found) -> list[str]:
    load = said["load"]
    lines = [f"tick {1000 * said['tick_s']:.1f} ms"]
    if "idle_before_w" in said and "idle_after_w" in said:
        lines.append(f"idle {said['idle_before_w']:.1f} W before, {said['idle_after_w']:.1f} W after")
    if "load_w" in said:
        lines.append(f"{said['load_w']:.1f} W over {load['window_s']:.0f} s of matrix products")
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
