"""Named tensors of any shape and dtype in a safetensors file of one's own: an algorithm's state from round to round."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from muster.errors import StorageError, TaskError
from muster.files.disk import storage_error
from muster.files.hashedfile import BlobFile
from muster.model.module_layout import SPELLINGS
from muster.model.safetensors_header import HeaderError, lay_out, parse, render
from muster.model.version_file import TORCH_DTYPES


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes and syncs a new file. Raises `StorageError`, or `TaskError` "train.bad_state" naming what is no plain
    tensor."""
    rows: list[tuple[str, str, tuple[int, ...]]] = []
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.dtype not in SPELLINGS:
            raise _bad_state(f"{name!r} is {tensor.dtype}, {tensor.layout}")
        rows.append((name, SPELLINGS[tensor.dtype], tuple(tensor.shape)))
    try:
        header = render({}, lay_out(rows))
    except HeaderError as error:
        raise _bad_state(str(error)) from error
    file = BlobFile(path)
    try:
        file.write(header)
        for tensor in tensors.values():
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            if flat.numel():
                file.write(flat.view(torch.uint8).numpy().data)
    finally:
        file.close()
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise storage_error(path, error) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """What `write_tensors` wrote, each a copy-on-write view of the mapped file. Raises `StorageError`
    "state.malformed"."""
    try:
        with path.open("rb") as file:
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        header = parse(view)
    except (OSError, ValueError) as error:  # of a file that is gone, empty or damaged
        raise StorageError(
            "state.malformed",
            f"the state file {path} is not what was written there: {error}",
            cause="the disk lost it",
            fix="check the disk; a peer starts without state once its data folder is removed",
        ) from error
    found: dict[str, Tensor] = {}
    for name, entry in header.entries.items():
        data = view[header.data_start + entry.start : header.data_start + entry.stop]
        dtype = TORCH_DTYPES[entry.dtype]
        flat = torch.from_numpy(np.frombuffer(data, dtype=np.uint8)) if len(data) else None
        # Of a copy where it does not begin at a multiple of its width.
        values = torch.empty(0, dtype=dtype) if flat is None else flat.clone().view(dtype)
        found[name] = values.view(entry.shape)
    return found


def _bad_state(what: str) -> TaskError:
    return TaskError(
        "train.bad_state",
        f"the algorithm's state cannot be kept: {what}",
        cause="a state is dense tensors by name",
        fix="correct the algorithm: `Contribution.state` maps names to tensors",
    )
