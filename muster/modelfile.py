"""Model versions: the file, and what a PyTorch module has to do with it."""

from muster._modelstate import ModelState, export_state, layout_of, load_into, read_state, write_initial
from muster._versionfile import ModelFile, ModelWriter, write_model
from muster.hashedfile import BlobInfo

__all__ = [
    "BlobInfo",
    "ModelFile",
    "ModelState",
    "ModelWriter",
    "export_state",
    "layout_of",
    "load_into",
    "read_state",
    "write_initial",
    "write_model",
]
