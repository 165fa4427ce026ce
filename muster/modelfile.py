"""Model versions: the file, and what a PyTorch module has to do with it."""

from muster._modelstate import (
    ModelState,
    check_takes,
    check_unchanged,
    export_state,
    load_into,
    read_state,
    write_initial,
)
from muster._modulelayout import layout_of
from muster._versionfile import TORCH_DTYPES, ModelFile, ModelWriter, chunk_pieces, write_model
from muster.hashedfile import BlobInfo

__all__ = [
    "TORCH_DTYPES",
    "BlobInfo",
    "ModelFile",
    "ModelState",
    "ModelWriter",
    "check_takes",
    "check_unchanged",
    "chunk_pieces",
    "export_state",
    "layout_of",
    "load_into",
    "read_state",
    "write_initial",
    "write_model",
]
