"""Measure the energy of a ``with`` block, or of a call, by all that this machine has."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from bpfree._errors import BadValue, MeterError, NotMeasurable
from bpfree.meters import rapl
from bpfree.meters.joules import EnergyMeter, Reading, Source
from bpfree.meters.sources import CPU, GPU


@contextmanager
def meter(
    device: torch.device | str | None = None,
    *,
    min_s: float = 10.0,
    min_ticks: float = 100.0,
    nvml: Any = None,
    rapl_root: Path | None = None,
) -> Iterator[EnergyMeter]:
    """An `EnergyMeter` of all that can be measured here: the GPU that ``device`` is, and the CPU packages.

    Arguments are those of `energy`; a meter that is dead from the beginning is named in `EnergyMeter.failed`.
    A device is held by one meter at a time.
    """
    device = _device(device)
    found = EnergyMeter(device, [], {}, min_s, min_ticks)
    makers: dict[str, Callable[[], Source]] = {"cpu": lambda: CPU(rapl_root or rapl.ROOT)}
    if device.type == "cuda":
        # The context is alive from here on, so that it is part of the idle baseline as well.
        torch.cuda.synchronize(device)
        makers = {"gpu": lambda: GPU(device, nvml)} | makers
    with ExitStack() as stack:
        for name, make in makers.items():
            try:
                source = make()
                stack.callback(source.close)
                _hold(source.identity, stack)
                found.sources.append(source)
            except NotMeasurable as error:
                found.absent[name] = str(error)
            except MeterError as error:
                found.fail(name, error)
            except Exception as error:  # noqa: BLE001 (whatever a meter dies of, the work that it meters goes on)
                found.absent[name] = f"the meter cannot be opened: {type(error).__name__}: {error}"
        yield found


@contextmanager
def energy(
    device: torch.device | str | None = None,
    *,
    idle_s: float = 30.0,
    min_s: float = 10.0,
    min_ticks: float = 100.0,
    nvml: Any = None,
    rapl_root: Path | None = None,
) -> Iterator[EnergyMeter]:
    """Measure the energy of a ``with`` block::

        with bpfree.meters.energy("cuda") as e:
            work()
        e.reading("gpu", "work").net_j  # joules; e.absent says what could not be measured, and why

    The block is the window ``work``; windows opened inside it (``with e("eval")``) are not counted in it.
    What a GPU or package draws is the whole device's: of all processes. Nothing is ever added up over
    sources.

    Args:
        device: The device that works; by default the current CUDA device, else the CPU.
        idle_s: Seconds of idling before and after, for the net figures; 0 for none.
        min_s: Seconds that a window must have for a figure.
        min_ticks: Ticks of the counter that it must have.
        nvml: Stands for the module ``pynvml``.
        rapl_root: Folder of the power capping framework, if it is not `rapl.ROOT`.

    Raises:
        MeterError: At the end, if a meter that worked failed on the way; at the beginning, if one is dead.
        BadValue: The device is neither a CPU nor a CUDA device of this machine.
    """
    with meter(device, min_s=min_s, min_ticks=min_ticks, nvml=nvml, rapl_root=rapl_root) as found:
        found.check()
        found.idle("before", idle_s)
        with found("work"):
            yield found
        found.idle("after", idle_s)
    found.check()


def _device(name: torch.device | str | None) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadValue(f"device = {name!r}: unknown; for example cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise BadValue(f"device = {str(device)!r}: energy is metered of cpu and cuda devices")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadValue(f"device = {str(device)!r}: this machine has no usable CUDA device")
    return device


def _hold(identity: str, stack: ExitStack) -> None:
    """Hold a device for this meter alone.

    Raises:
        NotMeasurable: Another meter holds it, or whether one does cannot be known.
    """
    import tempfile

    from filelock import FileLock, Timeout

    user = os.getuid() if hasattr(os, "getuid") else "user"
    path = Path(tempfile.gettempdir()) / f"bpfree-{user}-{identity}.lock"
    try:
        stack.enter_context(FileLock(path, timeout=0, is_singleton=False))
    except Timeout:
        raise NotMeasurable(
            f"another measured run holds the meter of {identity} ({path}); what both would read is the "
            "energy of both: wait for it"
        ) from None
    except OSError as error:
        raise NotMeasurable(
            f"the lock {path} cannot be taken ({error}); set TMPDIR to a folder of yours"
        ) from None


def energy_per_call(
    work: Callable[[], object], device: torch.device | str | None = None, **options: Any
) -> dict[str, Reading]:
    """The energy of one call of ``work()``, called as often as a window needs to be long enough.

    Args:
        work: Called without arguments: once before the window, then again and again in it.
        device: As for `energy`, as are the ``options``.

    Raises:
        MeterError: As for `energy`.
    """
    work()
    repeats = 0
    with energy(device, **options) as found:
        # Looking whether it is enough synchronises, so the rounds grow.
        while repeats == 0 or found.missing_s("work") > 0:
            for _ in range(max(1, repeats)):
                work()
                repeats += 1
    return found.readings("work", repeats=repeats)
