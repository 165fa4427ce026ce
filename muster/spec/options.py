"""Options of plug-ins in a run spec: what is wrong with them or missing, and their JSON Schema.

Loads the plug-ins whose options it looks at, and so torch where one computes with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from methods import kinds, options, registry
from methods.registry import MethodError
from methods.spelling import split
from muster.errors import ConfigError
from muster.spec.lines import KeyPath
from muster.spec.model import OptionsTable, RunSpec
from muster.spec.problems import Problem

# A table, the key in it that names the plug-in, and its kind.
TABLES: Mapping[str, tuple[str, str]] = {
    "train": ("algorithm", kinds.ALGORITHMS),
    "sampling": ("policy", kinds.SAMPLERS),
    "schedule": ("name", kinds.SCHEDULES),
    "aggregation": ("rule", kinds.RULES),
    "server": ("optimizer", kinds.SERVER_OPTIMIZERS),
}


def wrong_options(spec: RunSpec, *, given_only: bool = False) -> Iterator[Problem]:
    """Options that their plug-in has not, of which a needed one is missing, or that are of a wrong type.

    `given_only` leaves out plug-ins that are given no options, which would have to be loaded to tell what they need.
    One that is not installed is left out too: its name is told of elsewhere. Raises `ConfigError` "plugin.broken".
    """
    for name, (key, group) in TABLES.items():
        table = getattr(spec, name)
        if given_only and not table.options:
            continue
        plugin = _loaded(group, getattr(table, key))
        if plugin is not None:
            yield from _wrong(name, table, plugin, getattr(table, key), group)


def _wrong(name: str, table: Any, plugin: type[Any], called: str, group: str) -> Iterator[Problem]:
    place: KeyPath = (name, "options")
    own: dict[str, Any] = {}
    if isinstance(table, OptionsTable):  # its own keys are options too, of a plug-in that has them
        known = {option.name for option in options.options_of(plugin, group)}
        own = {key: value for key, value in table if key in known and key != "options"}
        for key in table.options:
            if key in type(table).model_fields:
                yield Problem((*place, key), f"is a key of [{name}] itself: give it there")
    for wrong in options.wrong_names(plugin, called, {**own, **table.options}, group):
        missing = wrong.option not in table.options
        yield Problem(place if missing else (*place, wrong.option), wrong.message)
    for wrong in options.wrong_types(plugin, table.options, group):
        yield Problem((*place, wrong.option), wrong.message)


def _loaded(group: str, name: str) -> type[Any] | None:
    try:
        return registry.find(group, name)
    except registry.UnknownMethodError:
        return None
    except MethodError as error:
        raise ConfigError(
            "plugin.broken", str(error), fix="reinstall the package that provides it"
        ) from error


def missing_faults(spec: RunSpec, data: Mapping[str, Any] | None = None) -> Iterator[Problem]:
    """A rule or pre-rule that is built on f, chosen by the spec's author, has to be told it, be it 0.

    `data` are the tables as they were written, where a spec has been filled in since.
    """
    table = spec.aggregation
    written = table.model_fields_set if data is None else set(data.get("aggregation", {}))
    if "faults" in written or not {"rule", "pre"} & written:
        return
    named = [(kinds.RULES, table.rule), *((kinds.PRE_RULES, split(pre)[0]) for pre in table.pre)]
    counted = {name for group, name in named if getattr(_loaded(group, name), "counts_faults", False)}
    if counted:
        yield Problem(
            ("aggregation", "faults"),
            f"is missing: {' and '.join(sorted(counted))} must be told how many of a round's updates may be faulty",
        )


def with_option_schemas(schema: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of run specs, with what each plug-in that is installed here takes as options."""
    for name, (key, group) in TABLES.items():
        found = schema["$defs"][_definition(schema["properties"][name])]
        found["allOf"] = [
            {
                "if": {"properties": {key: {"const": each}}, "required": [key]},
                "then": {"properties": {"options": _option_schema(group, each, found["properties"])}},
            }
            for each in registry.names(group)
        ]
    schedule = schema["properties"]["schedule"]
    schema["properties"]["schedule"] = {
        "anyOf": [{"type": "string"}, {"$ref": schedule.pop("$ref")}],
        **schedule,
    }
    return schema


def _option_schema(group: str, name: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """Without the keys that the table has itself."""
    found = options.schema(registry.find(group, name), group)
    found["properties"] = {key: value for key, value in found["properties"].items() if key not in own}
    found["required"] = [key for key in found["required"] if key not in own]
    return found


def _definition(field: Mapping[str, Any]) -> str:
    """The name of a table's model: "#/$defs/TrainTable" is TrainTable."""
    references = [field, *field.get("allOf", []), *field.get("anyOf", [])]
    return next(str(each["$ref"]).rpartition("/")[2] for each in references if "$ref" in each)
