"""When each block steps, on what input, and with which message."""

from bpfree.schedules.feed import Data, Feed
from bpfree.schedules.plan import Schedule, Stage, plan
from bpfree.schedules.step import ascend, descend, step

__all__ = ["Data", "Feed", "Schedule", "Stage", "ascend", "descend", "plan", "step"]
