"""Physical systems that compute: the interface of a user's own system, and simulated ones."""

from bpfree._renamed import module_getattr
from bpfree.physics.acoustic import AcousticCavity
from bpfree.physics.calibration import CalibrationReport
from bpfree.physics.device import PURPOSES, Device, Purpose
from bpfree.physics.diagnostics import nonlinearity_index, r_squared
from bpfree.physics.membranes import AcousticMembranes
from bpfree.physics.microwave import MicrowaveCavity
from bpfree.physics.nonideal import NonIdeal
from bpfree.physics.optical import MultimodeFiber
from bpfree.physics.process import ProcessSystem, serve
from bpfree.physics.recorded import Recorder, Replay
from bpfree.physics.simulated import Simulated
from bpfree.physics.state import join_state, split_state
from bpfree.physics.surrogate import CavitySurrogate
from bpfree.physics.system import DeviceError, PhysicalSystem

__all__ = [
    "PURPOSES",
    "AcousticCavity",
    "AcousticMembranes",
    "CalibrationReport",
    "CavitySurrogate",
    "Device",
    "DeviceError",
    "MicrowaveCavity",
    "MultimodeFiber",
    "NonIdeal",
    "PhysicalSystem",
    "ProcessSystem",
    "Purpose",
    "Recorder",
    "Replay",
    "Simulated",
    "join_state",
    "nonlinearity_index",
    "r_squared",
    "serve",
    "split_state",
]

__getattr__ = module_getattr(__name__, {"MultimodeFibre": "MultimodeFiber"})
