"""When each block steps, on what input, and with which message."""

from bpfree.cascade import descend
from bpfree.schedules.calibrate import calibrate
from bpfree.schedules.feed import Data, Feed
from bpfree.schedules.graph_feed import GraphFeed
from bpfree.schedules.kept import Growing, Store, rows_at
from bpfree.schedules.plan import Schedule, Stage, plan
from bpfree.schedules.settle import settle
from bpfree.schedules.step import ascend, step

__all__ = [
    "Data",
    "Feed",
    "GraphFeed",
    "Growing",
    "Schedule",
    "Stage",
    "Store",
    "ascend",
    "calibrate",
    "descend",
    "plan",
    "rows_at",
    "settle",
    "step",
]
