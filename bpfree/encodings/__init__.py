"""How labeled samples become inputs of the first block."""

from bpfree.encodings.base import Encoding, View
from bpfree.encodings.label_overlay import LabelOverlay, Overlay
from bpfree.encodings.label_slots import LabelSlots

__all__ = ["Encoding", "LabelOverlay", "LabelSlots", "Overlay", "View"]
