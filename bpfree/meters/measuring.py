"""Measures the energy of a ``with`` block, or of a call, with all sources of this machine."""

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
from bpfree.meters.nvml import Nvml
from bpfree.meters.sources import CPU, GPU


@contextmanager
def meter(
    device: torch.device | str | None = None,
    *,
    min_s: float = 10.0,
    min_ticks: float = 100.0,
    nvml: Nvml = None,
    rapl_root: Path | None = None,
) -> Iterator[EnergyMeter]:
    """Context manager: an `EnergyMeter` of the GPU ``device``, if it is one, and of the CPU packages.

    The arguments are those of `energy`. A source that fails at the start is added to `EnergyMeter.failed`.
    Only one meter at a time can use a source.
    """
    device = _device(device)
    energy_meter = EnergyMeter(device, [], {}, min_s, min_ticks)
    makers: dict[str, Callable[[], Source]] = {"cpu": lambda: CPU(rapl_root or rapl.ROOT)}
    if device.type == "cuda":
        # Creates the CUDA context, so that its power is part of the idle power.
        torch.cuda.synchronize(device)
        makers = {"gpu": lambda: GPU(device, nvml)} | makers
    with ExitStack() as stack:
        for name, make in makers.items():
            try:
                source = make()
                stack.callback(source.close)
                _lock(source.identity, stack)
                energy_meter.sources.append(source)
            except NotMeasurable as error:
                energy_meter.absent[name] = str(error)
            except MeterError as error:
                energy_meter.fail(name, error)
            except Exception as error:  # noqa: BLE001 (no failure of a meter ends the measured code)
                energy_meter.absent[name] = f"the meter cannot be opened: {type(error).__name__}: {error}"
        yield energy_meter


@contextmanager
def energy(
    device: torch.device | str | None = None,
    *,
    idle_s: float = 30.0,
    min_s: float = 10.0,
    min_ticks: float = 100.0,
    nvml: Nvml = None,
    rapl_root: Path | None = None,
) -> Iterator[EnergyMeter]:
    """Measure the energy of a ``with`` block::

        with bpfree.meters.energy("cuda") as e:
            work()
        e.reading("gpu", "work").net_j  # joules; e.absent has the reasons for what could not be measured

    The block is the window ``work``; windows opened inside it (``with e("eval")``) are not counted in it. The
    energy is that of the entire GPU or CPU package, including other processes. Readings of different sources
    are not added.

    Args:
        device: Torch device of the work; by default the current CUDA device if there is one, else the CPU.
        idle_s: Seconds of idling before and after the block, for the net energy; 0: no net energy.
        min_s: Minimum duration of a window in seconds.
        min_ticks: Minimum number of updates of the counter in a window.
        nvml: A replacement of the module ``pynvml``.
        rapl_root: Folder of the power capping framework; None: `rapl.ROOT`.

    Raises:
        MeterError: At the beginning or the end of the block, if a source has failed.
        BadValue: If the device is neither a CPU nor a CUDA device of this machine.
    """
    with meter(device, min_s=min_s, min_ticks=min_ticks, nvml=nvml, rapl_root=rapl_root) as energy_meter:
        energy_meter.check()
        energy_meter.idle("before", idle_s)
        with energy_meter("work"):
            yield energy_meter
        energy_meter.idle("after", idle_s)
    energy_meter.check()


def _device(name: torch.device | str | None) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadValue(f"device = {name!r}: unknown; for example cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise BadValue(f"device = {str(device)!r}: expected a cpu or cuda device")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadValue(f"device = {str(device)!r}: this machine has no usable CUDA device")
    return device


def _lock(identity: str, stack: ExitStack) -> None:
    """Lock a source for this meter.

    Raises:
        NotMeasurable: If another meter has locked it, or the lock file cannot be used.
    """
    import tempfile

    from filelock import FileLock, Timeout

    user = os.getuid() if hasattr(os, "getuid") else "user"
    path = Path(tempfile.gettempdir()) / f"bpfree-{user}-{identity}.lock"
    try:
        stack.enter_context(FileLock(path, timeout=0, is_singleton=False))
    except Timeout:
        raise NotMeasurable(
            f"another run measures {identity} ({path}), and both would read the energy of both: wait until "
            "it has ended"
        ) from None
    except OSError as error:
        raise NotMeasurable(
            f"the lock file {path} cannot be used ({error}); set TMPDIR to a folder that you can write to"
        ) from None


def energy_per_call(
    work: Callable[[], object], device: torch.device | str | None = None, **options: Any
) -> dict[str, Reading]:
    """Return the energy of one call of ``work()``, which is repeated until the window is long enough.

    Args:
        work: Function without arguments. It is called once before the window, then repeatedly.
        device: As in `energy`.
        options: Further arguments of `energy`.

    Returns:
        The `Reading` of each source, per call.

    Raises:
        MeterError: As in `energy`.
    """
    work()
    repeats = 0
    with energy(device, **options) as energy_meter:
        # Each check synchronizes the device, so the number of calls between two checks doubles.
        while repeats == 0 or energy_meter.missing_s("work") > 0:
            for _ in range(max(1, repeats)):
                work()
                repeats += 1
    return energy_meter.readings("work", repeats=repeats)
