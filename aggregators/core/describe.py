"""What there is: every rule, pre-rule, attack and peer-side rule that is installed, as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aggregators.core import registry
from aggregators.core.options import RuleError
from aggregators.core.rule import Needs
from methods import spelling as spellings
from methods.options import docstring, options_of
from methods.options import schema as option_schema

NEEDS = {
    Needs.GRAM: "the inner products of all updates: one more pass over them",
    Needs.WEIGHTS: "the declared weight of each update, which it believes",
    Needs.HONESTY: "no faulty update, or a pre-rule before it that clips",
    Needs.SAMPLES: "a sample of coordinates, drawn from the round's seed",
    Needs.SEED: "randomness, all of it from the round's seed",
    Needs.TRUSTED: "one trusted update (aggregation.trusted_peer)",
    Needs.STATE: "vectors kept from round to round",
    Needs.KEYS: "to know each peer from round to round",
    Needs.TEST_SET: "a local test set, which a peer has and a coordinator has not: no run spec can name it",
}


@dataclass(frozen=True, kw_only=True)
class Description:
    """`options` are name to default, in order; a default of "required" has to be given. `knobs` say of each option
    what it is, its unit and range, and what raising it does."""

    name: str
    kind: str
    summary: str
    source: str
    breakdown: str = ""
    needs: tuple[str, ...] = ()
    score: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    knobs: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    text: str = ""  # its equation, bound and cost, as the class tells them
    schema: Mapping[str, Any] = dataclasses.field(
        default_factory=dict[str, Any]
    )  # JSON Schema of its options


def describe(spelling: str) -> Description:
    """Of a name, or of one with a value behind a colon, "bucketing:2", which is told in place of the default.

    Raises `RuleError` with the nearest name if nothing is called so, and where the value is not for it.
    """
    name, argument = spellings.split(spelling)
    for group in registry.KINDS:
        if name in registry.names(group):
            found = _describe(group, name)
            if argument is None:
                return found
            plugin = registry.find(group, name, object)
            given = registry.positional(plugin, name, argument)
            registry.construct(plugin, name, given)
            return dataclasses.replace(found, options={**found.options, **given})
    everything = [each for group in registry.KINDS for each in registry.names(group)]
    raise RuleError(f"there is no rule, pre-rule or attack {name!r} {registry.hint(name, everything)}")


def everything() -> tuple[Description, ...]:
    """Rules first, then pre-rules, attacks and peer-side rules, by name; without those that cannot be loaded."""
    return tuple(_describe(group, name) for group in registry.KINDS for name in registry.loadable(group))


def _describe(group: str, name: str) -> Description:
    plugin = registry.find(group, name, object)
    text = docstring(plugin)
    told = dict(getattr(plugin, "knobs", {}))
    options = _options(plugin)
    return Description(
        name=name,
        kind=registry.KINDS[group],
        summary=text.partition("\n")[0],
        source=getattr(plugin, "source", ""),
        breakdown=getattr(plugin, "breakdown", ""),
        needs=_needs(plugin),
        score=getattr(plugin, "score", ""),
        options=options,
        knobs={option: told.get(option, "") for option in options},
        text=text,
        schema=option_schema(plugin, group),
    )


def _needs(plugin: type[object]) -> tuple[str, ...]:
    needs: Needs = getattr(plugin, "needs", Needs.NOTHING)
    told = [sentence for need, sentence in NEEDS.items() if need in needs]
    if (seen := getattr(plugin, "seen_min", 1)) > 1:
        told.append(f"{seen} updates or more that it sees")
    if getattr(plugin, "needs_pipeline", False):
        told.append("to know the pipeline that it attacks")
    return tuple(told)


def _options(plugin: type[object]) -> dict[str, Any]:
    return {
        option.name: "required" if option.required else option.default
        for option in options_of(plugin, registry.RULES)
    }
