"""JSON on standard output, the same in every command."""

from __future__ import annotations

import json
import sys
from typing import Any

from muster.texts import escaped_json


def emit_json(data: Any, *, line: bool = False) -> None:
    """One document; with `line` on one line, written through at once."""
    text = escaped_json(json.dumps(data, allow_nan=False, indent=None if line else 2, ensure_ascii=False))
    sys.stdout.write(text + "\n")
    if line:
        sys.stdout.flush()
