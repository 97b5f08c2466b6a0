"""When each block steps, on what input, and with which message."""

from bpfree.cascade import descend
from bpfree.kept import Growing, Store, rows_at
from bpfree.schedules.calibrate import calibrate
from bpfree.schedules.crew import Crew, Pipeline
from bpfree.schedules.feed import Data, Feed
from bpfree.schedules.graph_feed import GraphFeed
from bpfree.schedules.pipelined import Workers
from bpfree.schedules.plan import Schedule, Stage, plan
from bpfree.schedules.settle import settle
from bpfree.schedules.starting import crew
from bpfree.schedules.step import ascend, step
from bpfree.schedules.wires import Wires

__all__ = [
    "Crew",
    "Data",
    "Feed",
    "GraphFeed",
    "Growing",
    "Pipeline",
    "Schedule",
    "Stage",
    "Store",
    "Wires",
    "Workers",
    "ascend",
    "calibrate",
    "crew",
    "descend",
    "plan",
    "rows_at",
    "settle",
    "step",
]
