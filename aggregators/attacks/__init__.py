"""What a faulty peer may do, for demonstrations, simulations and tests of the rules."""

from __future__ import annotations

from typing import Any

from aggregators import registry
from aggregators.attacks.attack import Attack


def build(name: str, **options: Any) -> Attack:
    """The attack called `name`; `RuleError` if there is none or an option is wrong."""
    return registry.construct(registry.find(registry.ATTACKS, name, Attack), name, options)


__all__ = ["Attack", "build"]
