"""The groups that a run's algorithms declare, by the role of the work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from exchange import algorithms
from exchange.groups import GROUPS_MAX, Group
from muster.errors import ConfigError
from muster.work import TRAIN, algorithm_of

if TYPE_CHECKING:
    from muster.spec.model import RunSpec


def declared(algorithm: object, name: str) -> tuple[Group, ...]:
    """What an algorithm declares as its `groups`. Raises `ConfigError` "train.bad_group"."""
    groups: Sequence[Group] = tuple(getattr(algorithm, "groups", ()))
    wrong = (
        f"has {len(groups)} groups, more than {GROUPS_MAX}"
        if len(groups) > GROUPS_MAX
        else "has two groups of one name"
        if len({group.name for group in groups}) < len(groups)
        else ""
    )
    if wrong:
        raise ConfigError("train.bad_group", f"the algorithm {name!r} {wrong}", fix="correct its `groups`")
    return tuple(groups)


def groups_of_run(spec: RunSpec, role: str = TRAIN) -> tuple[Group, ...]:
    """What the algorithm of a role's training declares; nothing where it is not installed here or refuses its options,
    of which peers tell. Raises `ConfigError` "train.bad_group"."""
    name = algorithm_of(role, spec.train.algorithm)
    options = spec.train.options if name == spec.train.algorithm else {}
    try:
        algorithm = algorithms.build(name, options)
    except ConfigError as error:
        if error.id == "train.bad_group":
            raise
        return ()
    return declared(algorithm, name)


def groups_of_roles(spec: RunSpec, roles: Iterable[str]) -> tuple[Group, ...]:
    """Those of all these roles. Raises `ConfigError` "train.bad_group" where two mean different groups by one name."""
    found: dict[str, Group] = {}
    for role in sorted(set(roles)):
        for group in groups_of_run(spec, role):
            if found.setdefault(group.name, group) != group:
                raise ConfigError(
                    "train.bad_group",
                    f"two algorithms of the run have a group {group.name!r}, and not the same",
                    fix="name them apart",
                )
    return tuple(found.values())
