"""Messages of the model service, and of pulling a model, from what the coordinator works with."""

from __future__ import annotations

from coordinator.model_plans import ModelPlan
from coordinator.store import ModelRow
from protos.v1 import models_pb2 as pb
from protos.v1.tensors_pb2 import BlobHeader


def plan(found: ModelPlan) -> pb.PlanModelResponse:
    return pb.PlanModelResponse(
        factor_digest=found.factor_digest,
        groups=[
            pb.GroupFile(name=each.name, digest=each.digest, size_bytes=each.size_bytes)
            for each in found.groups
        ],
        base_digest=found.base_digest,
        scale_digest=found.scale_digest,
        deltas=[pb.ModelDelta(digest=each.digest, size_bytes=each.size_bytes) for each in found.deltas],
    )


def header(model: ModelRow, *, digest: str, size_bytes: int, offset: int) -> BlobHeader:
    """Of a version's file, or of one that goes with it."""
    return BlobHeader(
        size_bytes=size_bytes,
        digest=digest,
        layout_digest=model.layout_digest,
        run_id=model.run_id,
        round=model.round,
        offset=offset,
    )
