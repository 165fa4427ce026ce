"""Protobuf messages as plain JSON values, with fields that stay stable.

Unlike protobuf's own mapping: numbers are numbers (64-bit ones too), every field is present, names are as in
the `.proto` files, `*_json` fields are unfolded under their name without the suffix, a point in time that
has not come is null, and so is a number that JSON cannot hold; but metrics tell "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

import json
import math
from typing import Any

from google.protobuf.message import Message

from muster.task.metrics import plain


def to_json(message: Message) -> dict[str, Any]:
    """A protobuf message as JSON data with snake_case keys."""
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.name == "next_page_token":
            continue  # how a list came is nothing to its reader
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            found[field.name] = {str(key): _entry(item) for key, item in sorted(value.items())}
        elif field.is_repeated:
            found[field.name] = [_single(item) for item in value]
        elif field.name.endswith("_json"):
            found[field.name.removesuffix("_json")] = _unfolded(value)
        elif field.name.endswith("_at"):
            found[field.name] = value or None
        else:
            found[field.name] = _single(value)
    return found


def _single(value: Any) -> Any:
    return to_json(value) if isinstance(value, Message) else _scalar(value)


def _entry(value: Any) -> Any:
    return plain(value) if isinstance(value, float) else value


def _scalar(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _unfolded(text: str) -> Any:
    """A coordinator writes JSON here; what is not JSON all the same is shown as it came."""
    try:
        return json.loads(text, parse_constant=lambda _: None) if text else {}
    except ValueError:
        return text
