"""Plug-ins, looked up by name through entry points.

Looking a name up imports nothing, so that a run spec is checked without torch; only `find` loads.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from muster.errors import ConfigError

GROUPS = {
    "muster.rules": "aggregation rule",
    "muster.pre_rules": "pre-rule",
    "muster.peer_rules": "peer-side rule",
    "muster.attacks": "attack",
    "muster.codecs": "codec",
    "muster.feedbacks": "error feedback",
    "muster.samplers": "sampler",
    "muster.schedules": "schedule",
    "muster.server_optimizers": "server optimizer",
    "muster.algorithms": "local algorithm",
}


# What other platforms and papers call what is installed here; the spec keeps the name that it has here.
ALIASES: Mapping[str, Mapping[str, str]] = {
    "muster.rules": {
        **dict.fromkeys(("fedavg", "fed-avg", "average", "averaging", "avg", "weighted-mean"), "mean"),
        **dict.fromkeys(("coordinate-median", "coordinate-wise-median", "comed", "fedmedian"), "median"),
        **dict.fromkeys(
            ("trimmedmean", "trmean", "fedtrimmedavg", "coordinate-wise-trimmed-mean"), "trimmed-mean"
        ),
        **dict.fromkeys(("multikrum", "m-krum"), "multi-krum"),
        **dict.fromkeys(("geomed", "geometricmedian"), "geometric-median"),
        "centeredclipping": "centered-clipping",
        "fools-gold": "foolsgold",
    }
}


@cache
def _table(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}


def names(group: str) -> tuple[str, ...]:
    """The names in a group, sorted; empty if nothing is registered (a checkout that was never installed)."""
    return tuple(sorted(_table(group)))


def canonical(group: str, name: str) -> str:
    """The name under which a plug-in is installed, of one that goes by others elsewhere: "FedAvg" is mean."""
    if name in _table(group):
        return name
    return ALIASES.get(group, {}).get(name.lower().replace("_", "-"), name)


def nearest(word: str, known: tuple[str, ...]) -> str | None:
    """The known word that `word` was probably meant to be, if any is near."""
    found = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return found[0] if found else None


def unknown(group: str, name: str) -> str | None:
    """One sentence if `name` is not in the group; None if it is, or if the group is empty."""
    known = names(group)
    if not known or canonical(group, name) in known:
        return None
    kind = GROUPS.get(group, "plug-in")
    guess = nearest(name, known)
    hint = f"did you mean {guess!r}?" if guess else f"known: {', '.join(known)}"
    return f"there is no {kind} {name!r} ({hint})"


def find(group: str, name: str) -> Any:
    """Loads what an entry point names, as a rule a class.

    Raises `ConfigError`: "plugin.unknown" (with the nearest name), "plugin.broken" (it cannot be imported).
    """
    point = _table(group).get(canonical(group, name))
    if point is None:
        if not names(group):
            raise ConfigError(
                "plugin.unknown",
                f"nothing is registered in {group!r}, so {name!r} cannot be looked up",
                cause="Muster's entry points are missing: it runs from a checkout that was never installed",
                fix="pip install -e . in the checkout",
            )
        raise ConfigError(
            "plugin.unknown",
            unknown(group, name) or name,
            cause=f"no installed package has an entry point {name!r} in the group {group!r}",
            fix="correct the name, or install the package that provides it",
        )
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            "plugin.broken",
            f"the {GROUPS.get(group, 'plug-in')} {name!r} ({point.value}) cannot be loaded",
            cause=f"{type(error).__name__}: {error}",
            fix="reinstall the package that provides it",
        ) from error
