"""Model versions: the file, and what a PyTorch module has to do with it."""

from muster.files.hashedfile import BlobInfo
from muster.model.module_layout import layout_of
from muster.model.state import (
    ModelState,
    check_takes,
    check_unchanged,
    export_state,
    load_into,
    load_local,
    local_of,
    read_state,
    write_initial,
)
from muster.model.version_file import TORCH_DTYPES, ModelFile, ModelWriter, chunk_pieces, write_model

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
    "load_local",
    "local_of",
    "read_state",
    "write_initial",
    "write_model",
]
