"""The error of this package, and the checks that every plug-in makes of its options."""

from __future__ import annotations

import numbers
import sys

from methods.registry import MethodError


class RuleError(MethodError):
    """A rule, an attack or their options cannot be as asked; the message is one sentence for a person."""


def integral(value: object) -> int | None:
    """The int that `value` is, numpy's included; None of anything else, and of a bool."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        return None
    return int(value)


def check_integer(owner: str, option: str, value: object, *, minimum: int) -> int:
    """`value` as an int. Raises `RuleError` unless it is one (not a bool) of at least `minimum`."""
    number = integral(value)
    if number is None or number < minimum:
        raise RuleError(f"{owner}: {option} must be an integer of at least {minimum}, and it is {value!r}")
    return number


def check_seed(seed: object) -> int:
    """`seed` as an int. Raises `RuleError` unless it is one; it may be negative, and of any length."""
    number = integral(seed)
    if number is None:
        raise RuleError(f"a seed is an integer, and it is {seed!r}")
    return number


def counted(count: int, what: str) -> str:
    """ "1 update", "2 updates".

    >>> counted(1, "update")
    '1 update'
    """
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def check_number(owner: str, option: str, value: object, *, positive: bool = False) -> None:
    """Raises `RuleError` unless `value` is a number (not a bool) that a float holds, above zero if `positive`."""
    number = value if isinstance(value, float) else integral(value)
    if number is None or not abs(number) <= sys.float_info.max:
        raise RuleError(f"{owner}: {option} must be a finite number, and it is {value!r}")
    if positive and number <= 0:
        raise RuleError(f"{owner}: {option} must be above zero, and it is {value!r}")
