"""Physical systems that compute: opaque, counted, and anyone's; and simulated ones with real physics."""

from bpfree.physics.acoustic import AcousticCavity
from bpfree.physics.calibration import CalibrationReport
from bpfree.physics.device import PURPOSES, Device
from bpfree.physics.diagnostics import nonlinearity_index, r_squared
from bpfree.physics.membranes import AcousticMembranes
from bpfree.physics.microwave import MicrowaveCavity
from bpfree.physics.nonideal import NonIdeal
from bpfree.physics.optical import MultimodeFibre
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
    "MultimodeFibre",
    "NonIdeal",
    "PhysicalSystem",
    "ProcessSystem",
    "Recorder",
    "Replay",
    "Simulated",
    "join_state",
    "nonlinearity_index",
    "r_squared",
    "serve",
    "split_state",
]
