"""The parameter layouts of runs, each read once from a model file's header."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.engine.state import RunState
from coordinator.repairs import Repairs
from muster.errors import TransferError
from muster.files.blobs import BlobStore

if TYPE_CHECKING:
    from muster.model.layout import ParameterLayout


class Layouts:
    """Each run's parameter layout, read once."""

    def __init__(self, *, blobs: BlobStore, repairs: Repairs) -> None:
        self._blobs = blobs
        self._repairs = repairs
        self._known: dict[str, ParameterLayout] = {}  # by digest

    async def of(self, run: RunState) -> ParameterLayout:
        """The run's. Raises `StorageError` if its newest version is lost."""
        model = run.model
        if model is None:
            raise AssertionError(f"run {run.run_id} has no model yet")
        found = self._known.get(model.layout_digest)
        if found is None:
            path = self._blobs.path(model.digest)
            found = await asyncio.to_thread(_read, path)
            if found is None or found.digest != model.layout_digest:
                path = await self._repairs.model(run.run_id, model.digest, model.size_bytes)
                found = await asyncio.to_thread(_read, path)
            if found is None:
                raise AssertionError(f"{path} has the right bytes and no layout")
            self._known[model.layout_digest] = found
        return found


def _read(path: Path) -> ParameterLayout | None:
    """None where the file is gone or is no model version."""
    from muster.model.modelfile import ModelFile

    try:
        file = ModelFile(path)
    except (OSError, TransferError):
        return None
    file.close()
    return file.layout
