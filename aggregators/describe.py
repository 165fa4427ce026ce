"""What there is: every rule, pre-rule, attack and peer-side rule that is installed, as plain data."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aggregators import registry
from aggregators.options import RuleError
from aggregators.rule import Needs

NEEDS = {
    Needs.GRAM: "the inner products of all updates: one more pass over them",
    Needs.WEIGHTS: "the declared weight of each update, which it believes",
    Needs.HONESTY: "no faulty update, or a pre-rule before it that clips",
    Needs.SAMPLES: "a sample of coordinates, drawn from the round's seed",
    Needs.SEED: "randomness, all of it from the round's seed",
    Needs.TRUSTED: "one trusted update (aggregation.trusted_peer)",
    Needs.STATE: "vectors kept from round to round",
    Needs.KEYS: "to know each peer from round to round",
    Needs.TEST_SET: "a local test set",
}


@dataclass(frozen=True, kw_only=True)
class Description:
    """`options` are name to default, in order; a default of "required" has to be given."""

    name: str
    kind: str
    summary: str
    source: str
    breakdown: str = ""
    needs: tuple[str, ...] = ()
    score: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    text: str = ""  # its equation, bound and cost, as the class tells them


def describe(name: str) -> Description:
    """Raises `RuleError` with the nearest name if nothing is called so."""
    for group in registry.KINDS:
        if name in registry.names(group):
            return _describe(group, name)
    everything = [each for group in registry.KINDS for each in registry.names(group)]
    raise RuleError(f"there is no rule, pre-rule or attack {name!r}{registry.nearest(name, everything)}")


def everything() -> tuple[Description, ...]:
    """Rules first, then pre-rules, attacks and peer-side rules, by name."""
    return tuple(_describe(group, name) for group in registry.KINDS for name in registry.names(group))


def _describe(group: str, name: str) -> Description:
    plugin = registry.find(group, name, object)
    module = inspect.getmodule(plugin)
    needs: Needs = getattr(plugin, "needs", Needs.NOTHING)
    return Description(
        name=name,
        kind=registry.KINDS[group],
        summary=(module.__doc__ or "").strip().partition("\n")[0] if module else "",
        source=getattr(plugin, "source", ""),
        breakdown=getattr(plugin, "breakdown", ""),
        needs=tuple(sentence for need, sentence in NEEDS.items() if need in needs),
        score=getattr(plugin, "score", ""),
        options=_options(plugin),
        text=inspect.cleandoc(plugin.__doc__ or ""),
    )


def _options(plugin: type[object]) -> dict[str, Any]:
    fields = (
        {field.name: field for field in dataclasses.fields(plugin)}
        if dataclasses.is_dataclass(plugin)
        else {}
    )
    return {
        name: "required" if fields[name].default is dataclasses.MISSING else fields[name].default
        for name in registry.option_names(plugin)
    }
