"""The error of this package, and the checks that every plug-in makes of its options."""

from __future__ import annotations

import math


class RuleError(ValueError):
    """A rule, an attack or their options cannot be as asked; the message is one sentence for a person."""


def check_integer(owner: str, option: str, value: object, *, minimum: int) -> None:
    """Raises `RuleError` unless `value` is an int (not a bool) of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise RuleError(f"{owner}: {option} must be an integer of at least {minimum}, and it is {value!r}")


def check_number(owner: str, option: str, value: object, *, positive: bool = False) -> None:
    """Raises `RuleError` unless `value` is a finite number (not a bool), above zero if `positive`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RuleError(f"{owner}: {option} must be a finite number, and it is {value!r}")
    if positive and value <= 0:
        raise RuleError(f"{owner}: {option} must be above zero, and it is {value!r}")
