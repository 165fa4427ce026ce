"""What no round changes of a model: a version that is here ends with it, as any other version of the run does."""

from __future__ import annotations

import mmap
from contextlib import suppress
from pathlib import Path

from muster.model.layout import LAYOUT_KEY, ParameterLayout
from muster.model.safetensors_header import DTYPE_BYTES, HeaderError, parse
from muster.transfer.streams import Tail


def fixed_tail(version: Path) -> Tail | None:
    """The fixed tensors at the end of a version's file, if it has some. Blocks."""
    with version.open("rb") as file, suppress(HeaderError, ValueError):
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        layout = ParameterLayout.from_json(parse(view).metadata[LAYOUT_KEY])
        size = sum(DTYPE_BYTES[spec.dtype] * spec.size for spec in layout.fixed)
        return Tail(version, size) if size else None
    return None
