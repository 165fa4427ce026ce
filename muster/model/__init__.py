"""A model as chunks of flat vectors, and the file of a model version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from methods.lazy import reexport

if TYPE_CHECKING:
    from muster.model.layout import CHUNK_COORDINATES, ParameterLayout, TensorSpec, Vector
    from muster.model.version_file import ModelFile, ModelWriter, write_model

__all__ = [
    "CHUNK_COORDINATES",
    "ModelFile",
    "ModelWriter",
    "ParameterLayout",
    "TensorSpec",
    "Vector",
    "write_model",
]

__getattr__, __dir__ = reexport(
    __name__,
    {
        "muster.model.layout": (
            "CHUNK_COORDINATES",
            "ParameterLayout",
            "TensorSpec",
            "Vector",
        ),
        "muster.model.version_file": (
            "ModelFile",
            "ModelWriter",
            "write_model",
        ),
    },
)
