"""Options of plug-ins in a run spec: what is wrong with them or missing, and their JSON Schema.

Loads the plug-ins whose options it looks at, and so torch where one computes with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from methods import kinds, options, registry, spelling
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
    "mechanism": ("name", kinds.MECHANISMS),
}


# Keys of [compression] whose one string names a plug-in and carries its options.
SPELLED: Mapping[str, str] = {
    "up": kinds.CODECS,
    "feedback": kinds.FEEDBACKS,
    "down": kinds.CODECS,
    "down_feedback": kinds.FEEDBACKS,
}


def wrong_options(spec: RunSpec, *, given_only: bool = False) -> Iterator[Problem]:
    """Options that their plug-in has not or refuses, of which a needed one is missing, or that are of a wrong type.

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

    for place, spelled, group in _spellings(spec):
        for called, part in spelling.parts(spelled):
            argument = split(part)[1]
            if argument is not None and spelling.is_named(argument):
                yield from (Problem(place, said) for said in _wrong_part(group, called, argument))


def _spellings(spec: RunSpec) -> Iterator[tuple[KeyPath, str, str]]:
    """Where a string names plug-ins and carries their options."""
    for key, group in SPELLED.items():
        yield ("compression", key), getattr(spec.compression, key), group
    for number, each in enumerate(spec.aggregation.pre):
        yield ("aggregation", "pre", number), each, kinds.PRE_RULES


def _wrong_part(group: str, name: str, argument: str) -> Iterator[str]:
    plugin = _loaded(group, name)
    if plugin is None:
        return
    try:
        values = spelling.read_named(plugin, name, argument, group)
    except MethodError as error:
        yield str(error)
        return
    yield from (wrong.message for wrong in options.wrong_names(plugin, name, values, group))
    for wrong in options.wrong_types(plugin, values, group):
        yield f"{name}: {wrong.option} {wrong.message}"


def _wrong(name: str, table: Any, plugin: type[Any], called: str, group: str) -> Iterator[Problem]:
    place: KeyPath = (name, "options")
    found: list[Problem] = []
    own: dict[str, Any] = {}
    if isinstance(table, OptionsTable):  # its own keys are options too, of a plug-in that has them
        known = {option.name for option in options.options_of(plugin, group)}
        own = {key: value for key, value in table if key in known and key != "options"}
        for key in table.options:
            if key in type(table).model_fields:
                found.append(Problem((*place, key), f"is a key of [{name}] itself: give it there"))
    for wrong in options.wrong_names(plugin, called, {**own, **table.options}, group):
        missing = wrong.option not in table.options
        found.append(Problem(place if missing else (*place, wrong.option), wrong.message))
    for wrong in options.wrong_types(plugin, table.options, group):
        found.append(Problem((*place, wrong.option), wrong.message))
    if not found and table.options:
        said = options.refusal(plugin, called, {**own, **table.options}, group)
        found += [Problem(place, f"{called} refuses them: {said}")] if said else []
    yield from found


def unused_keys(spec: RunSpec) -> Iterator[tuple[str, str]]:
    """Keys of a table that say something and for which its plug-in has no option: each with a sentence about it.

    Raises as `wrong_options`.
    """
    for name, (key, group) in TABLES.items():
        table = getattr(spec, name)
        if not isinstance(table, OptionsTable):
            continue  # what its keys say is not for the plug-in alone
        called = getattr(table, key)
        said = {
            each: value
            for each, value in table
            if each not in (key, "options") and value != type(table).model_fields[each].default
        }
        plugin = _loaded(group, called) if said else None
        if plugin is None:
            continue
        for each in said.keys() - {option.name for option in options.options_of(plugin, group)}:
            yield (
                f"{name}.{each}",
                f"{name}.{each} = {said[each]!r}: {called} has no option {each!r} and is not given it; leave it out, "
                f"or set {name}.{key} to one that has it (muster plugin show {called} lists what this one takes)",
            )


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
    """The JSON Schema of run specs, with what each plug-in that is installed here takes as options.
    One that cannot be loaded is left out."""
    for name, (key, group) in TABLES.items():
        found = schema["$defs"][_definition(schema["properties"][name])]
        conditions = [
            {
                "if": {"properties": {key: {"const": each}}, "required": [key]},
                "then": {"properties": {"options": _option_schema(group, each, found["properties"])}},
            }
            for each in registry.loadable(group)
        ]
        if conditions:  # JSON Schema has no empty allOf
            found["allOf"] = conditions
    compression = schema["$defs"]["CompressionTable"]["properties"]
    for key, group in SPELLED.items():
        compression[key] = _or_table(compression[key], group)
    pre = schema["$defs"]["AggregationTable"]["properties"]["pre"]
    pre["items"] = _or_table(pre["items"], kinds.PRE_RULES)
    schedule = schema["properties"]["schedule"]
    schema["properties"]["schedule"] = {
        "anyOf": [{"type": "string"}, {"$ref": schedule.pop("$ref")}],
        **schedule,
    }
    return schema


def _or_table(field: dict[str, Any], group: str) -> dict[str, Any]:
    """A spelling, or a table of name and options."""
    tables = [
        {
            "type": "object",
            "properties": {
                "name": {"const": each},
                "options": options.schema(registry.find(group, each), group),
            },
            "required": ["name"],
            "additionalProperties": False,
        }
        for each in registry.loadable(group)
    ]
    kind = field.pop("type")
    return {**field, "anyOf": [{"type": kind}, *tables]}


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
