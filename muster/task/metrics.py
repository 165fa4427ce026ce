"""Metrics: numbers under names. What a task gives as such, and how those that JSON has no word for are written.

A metric may be NaN or infinite, and is shown as that: it tells of a model that has diverged. In JSON, which has no such
numbers, it is one of the texts "NaN", "Infinity" and "-Infinity", wherever JSON is stored, sent or printed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral
from typing import Any, SupportsFloat, cast

from muster.texts import one_line

METRICS_MAX = 100  # of one report; a task with more classes than that says their mean
NAME_CHARACTERS_MAX = 100
PEERS = "peers/"  # before the name of what is the mean over them
# How much of a row is shown, whatever version wrote it.
SHOWN_MAX = 1024
SHOWN_NAME_CHARACTERS_MAX = len(PEERS) + NAME_CHARACTERS_MAX
EXAMPLES_MAX = 2**53  # what a float64 weight still counts exactly
TOLD_MAX = 5  # of those that are left out
_TEXT_SHOWN = 40
_NO_JSON = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

Plain = float | str


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The metrics that count, and a warning for each value that does not."""

    values: Mapping[str, float]
    warnings: tuple[str, ...]  # a sentence for each kind of thing that is no metric


def measured(found: object, who: str) -> Measured:
    """What `who` ("my.task:Task.evaluate") gave: the numbers in it, and in words what else was there.

    Numbers are those of Python, NumPy and PyTorch, the latter also as arrays of one element. What is no number is left
    out by name, and so is what raises when it is read. Nothing raises here.
    """
    try:
        return _measured(found, who)
    except Exception as error:  # a mapping of the task's own may raise anything when it is read
        told = f"{who} returned what cannot be read ({type(error).__name__}): return a dict of numbers"
        return Measured(values={}, warnings=(told,))


def _measured(found: object, who: str) -> Measured:
    if not isinstance(found, Mapping):
        told = f"{who} returned {_kind(found)}, which holds no metrics for Muster: return {_instead(found)}"
        return Measured(values={}, warnings=(told,))
    values: dict[str, float] = {}
    wrong: list[str] = []
    given: Mapping[Any, Any] = found
    for key, value in given.items():
        name = _name_of(key)
        number = as_number(value)
        if not _is_name(name):
            told = (
                f"{_kind(key)} as a name, which is no printable text of 1 to {NAME_CHARACTERS_MAX} characters"
            )
            wrong.append(told)
        elif number is None:
            wrong.append(f"{name!r} is {_kind(value)}")
        elif name in values:
            wrong.append(f"a second {name!r}, by another key that reads the same")
        else:
            values[name] = number
    kept, more = bounded(values)
    warnings: list[str] = []
    if wrong:
        rest = f", and {len(wrong) - TOLD_MAX} more" if len(wrong) > TOLD_MAX else ""
        told = "; ".join(wrong[:TOLD_MAX])
        warnings.append(f"{who} returned what is no metric, left out: {told}{rest}; a metric is one number")
    if more:
        warnings.append(
            f"{who} returned {len(values)} metrics, of which {more} are left out: {METRICS_MAX} are kept"
        )
    return Measured(values=kept, warnings=tuple(warnings))


def as_number(value: object) -> float | None:
    """A number as Python's float; None for what is none. Too large for a float is infinite."""
    try:
        return _as_float(value)
    except Exception:  # whatever a class of the task's own raises, it gives no number
        return None


def _as_float(value: object) -> float | None:
    if hasattr(value, "shape"):  # NumPy's and PyTorch's, scalars too
        if math.prod(cast("Any", value).shape) != 1:
            return None
        value = cast("object", cast("Any", value).item())
    if isinstance(value, str | bytes | bytearray) or not hasattr(value, "__float__"):
        return None
    try:
        number = float(cast("SupportsFloat", value))
    except OverflowError:  # an int beyond a float's range
        return math.inf if cast("int", value) > 0 else -math.inf
    return math.nan if math.isnan(number) else number


def bounded(metrics: Mapping[str, float]) -> tuple[dict[str, float], int]:
    """The first `METRICS_MAX` of them, and how many are left out."""
    kept = dict(list(metrics.items())[:METRICS_MAX])
    return kept, len(metrics) - len(kept)


def accepted(metrics: Mapping[str, float]) -> tuple[dict[str, float], int]:
    """Of what came over the wire, in the order of names: those that `measured` could have given, and how many
    are not."""
    named = {name: float(metrics[name]) for name in sorted(metrics) if _is_name(name)}
    kept, _ = bounded({name: math.nan if math.isnan(value) else value for name, value in named.items()})
    return kept, len(metrics) - len(kept)


def not_finite(metrics: Mapping[str, float]) -> str:
    """ "auc NaN, loss Infinity"; empty if all are finite."""
    return shown({name: value for name, value in metrics.items() if not math.isfinite(value)})


def shown(metrics: Mapping[str, float], count_max: int = METRICS_MAX) -> str:
    """ "accuracy 0.961, auc NaN", by name."""
    parts = [f"{name} {in_words(value)}" for name, value in sorted(metrics.items())]
    more = f" and {len(parts) - count_max} more" if len(parts) > count_max else ""
    return ", ".join(parts[:count_max]) + more


def in_words(value: float) -> str:
    """Four digits, or the word for what is not finite."""
    return f"{value:.4g}" if math.isfinite(value) else str(plain(value))


def plain(value: float) -> Plain:
    """As JSON can hold it."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def plain_all(metrics: Mapping[str, float]) -> dict[str, Plain]:
    """Each metric as JSON can hold it: NaN and infinities as text."""
    return {name: plain(value) for name, value in metrics.items()}


def to_json(metrics: Mapping[str, float]) -> str:
    """JSON text, keys sorted; NaN and infinities as text."""
    return json.dumps(plain_all(metrics), sort_keys=True, allow_nan=False)


def from_json(text: str) -> dict[str, float]:
    """What `to_json` wrote. What a damaged database holds in its place is left out."""
    try:
        found: Any = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    kept: dict[str, float] = {}
    for name, value in found.items() if isinstance(found, dict) else ():
        number = _NO_JSON.get(value) if isinstance(value, str) else as_number(value)
        if number is not None:
            kept[name] = number
    return kept


def _is_name(name: str) -> bool:
    return 0 < len(name) <= NAME_CHARACTERS_MAX and name.isprintable()


def _name_of(key: object) -> str:
    """ "" for what is no name. Classes are often counted, by NumPy too."""
    try:
        return str(key) if isinstance(key, str | Integral) else ""
    except Exception:  # as of values
        return ""


def _kind(value: object) -> str:
    name = one_line(type(value).__name__, NAME_CHARACTERS_MAX)
    if isinstance(value, str):
        return f"the text {value[:_TEXT_SHOWN]!r}" + ("..." if len(value) > _TEXT_SHOWN else "")
    with suppress(Exception):  # no shape, or one of the task's own
        return f"a {name} of shape {tuple(int(size) for size in cast('Any', value).shape)}"
    if isinstance(value, dict | list | tuple | set | frozenset):
        return f"a {name} of {len(cast('Sequence[object]', value))}"
    return "None" if value is None else f"a {name}"


def _instead(found: object) -> str:
    parts = list(cast("Sequence[object]", found)) if isinstance(found, tuple | list) else []
    if any(isinstance(part, Mapping) for part in parts):
        return '{"loss": loss, **metrics}, one dict of numbers'
    if as_number(found) is not None:
        return '{"loss": value}, a dict of numbers'
    return "a dict of numbers, {} where there is nothing to evaluate on"
