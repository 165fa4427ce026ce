"""What a user writes and is given; see `muster.task.task`."""

from muster.task.task import FitContext, FitReport, Site, Task

__all__ = ["FitContext", "FitReport", "Site", "Task"]
