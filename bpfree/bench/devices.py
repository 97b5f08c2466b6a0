"""Makes the devices of a physical network from the section ``physics`` of a config."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import torch
from annotated_types import Ge, MinLen

from bpfree import _seeds, physics
from bpfree._errors import BadValue
from bpfree._settings import STRICT, did_you_mean, validate
from bpfree.bench.files import Mapped, Values
from bpfree.bench.profile import Profile, modeled
from bpfree.data import acoustic_cavity
from bpfree.physics.calibration import probes


class MeasuredCavity(physics.CavitySurrogate):
    """The measured acoustic cavity: the surrogate that is fitted to `bpfree.data.acoustic_cavity`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(*acoustic_cavity(), **options)


#: Systems by name; "none" is the ablation without a device.
SYSTEMS: Mapped = {
    "none": None,
    "acoustic": physics.AcousticCavity,
    "microwave": physics.MicrowaveCavity,
    "optical": physics.MultimodeFiber,
    "measured_acoustic": MeasuredCavity,
}

#: Probes of the nonlinearity index for each input of a device, and the inputs of the largest device probed.
PROBES_PER_INPUT, LARGEST_PROBED = 12, 256


@dataclass(frozen=True, kw_only=True)
class PhysicsConfig:
    """A device for each layer of a physical network.

    Attributes:
        system: One of `SYSTEMS`.
        seeds: Device seeds; every model seed runs with each. A cell has one.
        shared: Whether all layers share one device, or each layer has its own.
        options: Arguments of the system.
        nonideal: Arguments of a `bpfree.physics.NonIdeal` around it, or None.
        profile: Time and energy of such hardware, see `bpfree.bench.profile.Profile`; or None.
    """

    __pydantic_config__ = STRICT

    system: str
    seeds: Annotated[list[Annotated[int, Ge(0)]], MinLen(1)] = field(default_factory=lambda: [0])
    shared: bool = True
    options: Mapped = field(default_factory=dict)
    nonideal: Mapped | None = None
    profile: Mapped | None = None

    def record(self) -> Mapped:
        """The settings as plain data, without the seeds: a cell stores its device seed itself."""
        return {k: v for k, v in asdict(self).items() if k != "seeds"}


def physics_config(values: Values, where: str = "") -> PhysicsConfig:
    """The checked section.

    Raises:
        BadValue: If a key is unknown or has a bad value.
    """
    config = validate(PhysicsConfig, values, f"{where}physics")
    if config.system not in SYSTEMS:
        raise BadValue(
            f"{where}physics.system = {config.system!r}: unknown; {did_you_mean(config.system, SYSTEMS)}"
        )
    for name, options, kinds in (
        ("options", config.options, _classes(SYSTEMS[config.system])),
        ("nonideal", config.nonideal or {}, [physics.NonIdeal]),
    ):
        known = {p for kind in kinds for p in inspect.signature(kind.__init__).parameters} - _RESERVED
        for key in options:
            if key not in known:
                raise BadValue(
                    f"{where}physics.{name}.{key}: unknown key; {did_you_mean(key, sorted(known))}"
                )
    if config.profile is not None:
        lacking = validate(Profile, config.profile, f"{where}physics.profile").missing()
        if lacking:
            raise BadValue(f"{where}physics.profile.bit_j needs {' and '.join(lacking)} beside it")
    return config


#: Parameters that a config cannot set.
_RESERVED = {"self", "options", "seed_device", "seed_noise", "seed", "system", "device", "u", "y"}


def _classes(kind: type | None) -> list[Any]:
    return [] if kind is None else [c for c in kind.__mro__ if c.__module__.startswith("bpfree.")]


def make_devices(
    config: PhysicsConfig, n: int, device_seed: int, seed: int
) -> Sequence[physics.Device | None]:
    """The devices of ``n`` layers, None where there is none.

    Args:
        config: The section.
        n: Number of layers.
        device_seed: Seed of the disorder.
        seed: Seed of the model; both seeds together give the noise.

    Raises:
        BadValue: If the system does not accept its options.
    """
    if config.system == "none":
        return [None] * n
    if config.shared:
        return [_device(config, device_seed, seed, 0)] * n
    return [_device(config, device_seed, seed, k) for k in range(n)]


def _device(config: PhysicsConfig, device_seed: int, seed: int, number: int) -> physics.Device:
    options = dict(config.options)
    if "dtype" in options:
        options["dtype"] = getattr(torch, str(options["dtype"]), options["dtype"])
    for key, value in options.items():
        if isinstance(value, list):
            options[key] = tuple(value)
    noise = _seeds.derive(seed, "device noise", device_seed, number)
    try:
        system = SYSTEMS[config.system](
            seed_device=_seeds.derive(device_seed, "device", number), seed_noise=noise, **options
        )
        if config.nonideal is not None:
            system = physics.NonIdeal(system, seed=noise, **config.nonideal)
    except TypeError as error:
        raise BadValue(f"physics: {config.system} does not accept its options: {error}") from None
    return physics.Device(system)


def report(
    config: PhysicsConfig, devices: Sequence[physics.Device | None], passes: dict[str, int], flops: float
) -> Mapped:
    """The section ``physics`` of a row.

    Args:
        config: The section.
        devices: One for each layer.
        passes: Rows sent until the end of training, by purpose.
        flops: FLOPs of the training.
    """
    distinct = list({id(d): d for d in devices if d is not None}.values())
    result: Mapped = {"passes": passes, "devices": [device.report() for device in distinct]}
    if distinct and distinct[0].n_in <= LARGEST_PROBED and hasattr(distinct[0].system, "frozen"):
        with distinct[0].frozen(), distinct[0].counters("other"):
            u = probes(PROBES_PER_INPUT * distinct[0].n_in, distinct[0].n_in, distinct[0].input_range, seed=0)
            result["nonlinearity_index"] = physics.nonlinearity_index(u, distinct[0].forward(u))
    if config.profile is not None:
        result["modelled"] = modeled(Profile(**config.profile), devices, passes, flops)
    return result
