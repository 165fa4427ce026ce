"""Pure decisions: events in, what to do and why out; and what a plug-in of a run's rounds is written against.

    Sampler     who takes part in a round: a frozen dataclass of options, registered in "muster.samplers"
    Schedule    what happens next, on each event: registered in "muster.schedules" (`ScheduleClass`)

A schedule answers with actions (`OpenRound`, `OfferWork`, `CloseRound`...), and reads `RunState` and `PeerView`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from methods.lazy import reexport

if TYPE_CHECKING:
    from coordinator.engine.sampling import Draw, Poisson, Sampler, Uniform
    from coordinator.engine.schedule import (
        Action,
        CloseRound,
        ExpireWork,
        Finish,
        OfferWork,
        OpenRound,
        Refuse,
        Schedule,
        ScheduleClass,
        SkipRound,
        StartGrace,
        Wait,
    )
    from coordinator.engine.state import (
        Decision,
        Event,
        PeerStatus,
        PeerView,
        RoundState,
        RoundStatus,
        RunState,
        RunStatus,
        Transition,
    )
    from coordinator.engine.synchronous import Synchronous
    from coordinator.engine.works import AssignmentState, AssignmentStatus

__all__ = [
    "Action",
    "AssignmentState",
    "AssignmentStatus",
    "CloseRound",
    "Decision",
    "Draw",
    "Event",
    "ExpireWork",
    "Finish",
    "OfferWork",
    "OpenRound",
    "PeerStatus",
    "PeerView",
    "Poisson",
    "Refuse",
    "RoundState",
    "RoundStatus",
    "RunState",
    "RunStatus",
    "Sampler",
    "Schedule",
    "ScheduleClass",
    "SkipRound",
    "StartGrace",
    "Synchronous",
    "Transition",
    "Uniform",
    "Wait",
]

__getattr__, __dir__ = reexport(
    __name__,
    {
        "coordinator.engine.sampling": (
            "Draw",
            "Poisson",
            "Sampler",
            "Uniform",
        ),
        "coordinator.engine.schedule": (
            "Action",
            "CloseRound",
            "ExpireWork",
            "Finish",
            "OfferWork",
            "OpenRound",
            "Refuse",
            "Schedule",
            "ScheduleClass",
            "SkipRound",
            "StartGrace",
            "Wait",
        ),
        "coordinator.engine.state": (
            "Decision",
            "Event",
            "PeerStatus",
            "PeerView",
            "RoundState",
            "RoundStatus",
            "RunState",
            "RunStatus",
            "Transition",
        ),
        "coordinator.engine.synchronous": ("Synchronous",),
        "coordinator.engine.works": ("AssignmentState", "AssignmentStatus"),
    },
)
