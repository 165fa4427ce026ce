"""Starts the effects of what was committed: each kind by its own handler, each effect once at a time.

Effects are idempotent: asked again after a restart, a handler does the same work over, and the engine ignores a
result that it has already.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from coordinator.background import Background
from coordinator.engine.state import Aggregate, Cancel, Effect, EvaluateOwn, Offer, PrepareModel, WakeAt
from coordinator.events import Committed, Notice

Handler = Callable[[Any], Coroutine[Any, Any, None]]


class EffectRunner:
    """`handlers` by type of effect; those of `Offer`, `Cancel` and `WakeAt` are other subscribers."""

    def __init__(self, *, background: Background, handlers: Mapping[type[Effect], Handler]) -> None:
        self._background = background
        self._handlers = handlers
        self._under_way: set[tuple[object, ...]] = set()

    def hear(self, notice: Notice) -> None:
        """Subscriber."""
        if isinstance(notice, Committed):
            for effect in notice.effects:
                if not isinstance(effect, Offer | Cancel | WakeAt):
                    self._start(effect)

    def _start(self, effect: Effect) -> None:
        key = _key(effect)
        if key in self._under_way:
            return
        self._under_way.add(key)
        handler = self._handlers[type(effect)]

        async def guarded() -> None:
            try:
                await handler(effect)
            finally:
                self._under_way.discard(key)

        self._background.spawn(guarded())


def _key(effect: Effect) -> tuple[object, ...]:
    """Two effects with the same key ask for the same work."""
    match effect:
        case PrepareModel():
            return (PrepareModel, effect.run_id)
        case Aggregate():
            return (Aggregate, effect.run_id, effect.round)
        case EvaluateOwn():
            return (EvaluateOwn, effect.run_id, effect.model.version)
        case _:
            raise AssertionError(f"no way to carry out {type(effect).__name__}")
