"""Admission: an update passes whole or is rejected by name with a reason; it is never mended.

Checked before any rule sees it: the manifest against what was asked for, every chunk through its codec's own decoder,
finiteness, and the L2 norm against the run's cap. Sizes and codecs come from the run spec and the layout, never from
the update.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

import compressors
from aggregators.core.gram import LONGEST_KEPT
from compressors.core import integers
from exchange import group_files, links, mechanisms
from exchange.contexts import ChunkContexts
from exchange.declared_groups import groups_of_run
from exchange.factors import CommonFactor
from exchange.facts import UpdateFacts
from exchange.payload import BESIDE, GroupSpec, PayloadReader, groups_of
from muster.errors import UpdateRejected
from muster.model.integers import bounds
from muster.model.layout import BUFFERS, CHUNK_COORDINATES, COUNTERS, PARAMS, ParameterLayout, Vector
from muster.model.modelfile import TORCH_DTYPES, chunk_pieces
from muster.spec.model import RunSpec
from muster.task.metrics import NAME_CHARACTERS_MAX
from muster.texts import one_line
from muster.work import TRAIN

HEADER_BYTES_MAX = 1 << 20
# Whatever the spec says: the squares of a longer update, and its sum with others, are not finite in float32, so that
# the rules could tell nothing of it. No training that converges comes within magnitudes of it.
NORM_LIMIT = LONGEST_KEPT


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the coordinator asked this peer for."""

    assignment_id: str
    peer_id: str
    run_id: str
    round: int
    base_version: int
    base_digest: str
    layout: ParameterLayout
    spec: RunSpec
    role: str = TRAIN  # of the work
    source_digest: str = ""  # of the coordinator's own source code of the task, where it is known
    estimate: Path | None = None  # what is held of the peer's link, where its feedback sends differences
    factor: Path | None = None  # the version's, where the senders of a round share one


def update_bytes_max(spec: RunSpec, layout: ParameterLayout, version: int, role: str = TRAIN) -> int:
    """No honest update made against this version is larger than this, header included."""
    sizes = {
        group: [stop - start for start, stop in map(vector.chunk_bounds, range(vector.chunk_count))]
        for group, vector in layout.groups.items()
    }
    codecs = map(compressors.build, links.codecs(spec, version))
    params = max(sum(codec.bytes_max(size) for size in sizes[PARAMS]) for codec in codecs)
    buffers = sum(map(compressors.build(BESIDE[BUFFERS]).bytes_max, sizes.get(BUFFERS, [])))
    counters = sum(map(integers.bytes_max, sizes.get(COUNTERS, [])))
    groups = group_files.bytes_max(groups_of_run(spec, role), layout)
    return HEADER_BYTES_MAX + 8 + params + buffers + counters + groups


def admit(path: Path, digest: str, expected: Expected) -> UpdateFacts:
    """Reads the whole update once and tells what it is. Raises `UpdateRejected` with ids `update.*`."""
    reader = PayloadReader(path)
    try:
        _check_manifest(reader, expected)
        _check_sources(reader, expected)
        norm = _measure(reader, expected)
        _check_counters(reader, expected.layout.groups.get(COUNTERS, Vector(tensors=())))
        group_files.check_groups(reader, groups_of_run(expected.spec, expected.role), _contexts(expected))
        scalars = reader.manifest.scalars
        source_digest = reader.manifest.source_digest
    finally:
        reader.close()
    _check_norm(norm, expected.spec.aggregation.norm_max)
    _check_sealed(norm, expected)
    examples = scalars.get("examples", 0.0)
    if not (math.isfinite(examples) and 1 <= examples <= 2**53 and examples == int(examples)):
        raise UpdateRejected(
            "update.bad_examples", f"the update says it stands for {examples!r} examples", cause="not a count"
        )
    return UpdateFacts(
        digest=digest,
        size_bytes=path.stat().st_size,
        dense_bytes=_dense_bytes(expected),
        examples=int(examples),
        norm=norm,
        source_digest=source_digest,
        metrics={
            one_line(name.removeprefix("metric/"), NAME_CHARACTERS_MAX): value
            for name, value in scalars.items()
            if name.startswith("metric/")
        },
    )


def _check_norm(norm: float, limit: float | None) -> None:
    if limit is not None and norm > limit:
        raise UpdateRejected(
            "update.norm_too_large",
            f"the update's L2 norm is {norm:.6g}; the run admits at most {limit:.6g}",
            fix="lower the learning rate at this peer, or raise aggregation.norm_max in the run spec",
        )
    if norm > NORM_LIMIT:
        raise UpdateRejected(
            "update.norm_too_large",
            f"the update's L2 norm is {norm:.6g}; no run admits more than {NORM_LIMIT:.6g}",
            cause="training diverged on the peer, or the peer lies: float32 cannot hold products of such values, and "
            "one of them would stop the whole round",
            fix="lower train.lr or set train.clip_norm",
        )


def _check_sealed(norm: float, expected: Expected) -> None:
    """All that can be told of a sealed update is how long it may be."""
    limit = mechanisms.norm_max(expected.spec, expected.layout.size)
    if norm > limit:
        raise UpdateRejected(
            "update.norm_too_large",
            f"the update's L2 norm is {norm:.6g}; sealed by {expected.spec.mechanism.name} it has at most {limit:.6g}",
            cause="the mechanism has other options on the peer, training diverged there, or the peer lies",
            fix="install the same version of the mechanism on coordinator and peer, or lower train.lr",
        )


def _check_manifest(reader: PayloadReader, expected: Expected) -> None:
    manifest = reader.manifest
    allowed = links.codecs(expected.spec, expected.base_version)
    spelling = manifest.codec_of(PARAMS)
    codec = spelling if spelling in allowed else allowed[0]
    wanted = {
        "run": (manifest.run_id, expected.run_id),
        "round": (manifest.round, expected.round),
        "assignment": (manifest.assignment_id, expected.assignment_id),
        "base model": (manifest.base_digest, expected.base_digest),
        "layout": (manifest.layout_digest, expected.layout.digest),
        "groups": (
            tuple((group.name, group.codec, group.size) for group in manifest.groups),
            tuple((group.name, group.codec, group.size) for group in _groups(expected, codec)),
        ),
    }
    for what, (found, right) in wanted.items():
        if found != right:
            raise UpdateRejected(
                "update.mismatch",
                f"the update's {what} is {found!r}, asked was {right!r}",
                cause="it was made for something else, or tensors are missing, extra or of another shape or dtype",
            )


def _groups(expected: Expected, codec: str) -> tuple[GroupSpec, ...]:
    """The model's own, and those that the run's algorithm sends."""
    own = groups_of(expected.layout, codec)
    return own + group_files.specs_of(groups_of_run(expected.spec, expected.role), expected.layout)


def _dense_bytes(expected: Expected) -> int:
    """Of all that the update holds, without any codec."""
    own = sum(4 * vector.size for vector in expected.layout.groups.values())
    return own + sum(
        group.dense_bytes(expected.layout) for group in groups_of_run(expected.spec, expected.role)
    )


def _contexts(expected: Expected) -> ChunkContexts:
    return links.contexts(
        expected.spec,
        expected.layout,
        base_digest=expected.base_digest,
        round=expected.round,
        peer_id=expected.peer_id,
        role=expected.role,
    )


def _check_sources(reader: PayloadReader, expected: Expected) -> None:
    found, wanted = reader.manifest.source_digest, expected.source_digest
    if expected.spec.task_sources == "same" and wanted and found != wanted:
        raise UpdateRejected(
            "update.other_sources",
            "the update was made with other source code of the task than the coordinator's",
            cause=f'its digest is {found[:12] or "unknown"} there and {wanted[:12]} here; task_sources = "same"',
            fix="install the same version of the task on both",
        )


def _measure(reader: PayloadReader, expected: Expected) -> float:
    """L2 norm of the decoded update, every chunk decoded and found finite."""
    layout, spec = expected.layout, expected.spec
    contexts = _contexts(expected)
    with ExitStack() as stack:
        up = compressors.build(spec.compression.up)
        factor = CommonFactor(up, layout, expected.base_version, expected.factor)
        stack.callback(factor.close)
        spelling = reader.manifest.codec_of(PARAMS)
        link = links.Link(spec, spelling, contexts, estimate=expected.estimate, factor=factor)
        stack.callback(link.close)
        return _norm(reader, layout, link)


def _norm(reader: PayloadReader, layout: ParameterLayout, link: links.Link) -> float:
    scratch = torch.empty(min(CHUNK_COORDINATES, layout.columns_size))
    square = 0.0
    for column in layout.columns:
        chunk = scratch[: column.stop - column.start]
        try:
            link.read(reader, column, chunk)
        except compressors.DecodeError as error:
            raise _undecodable(column.group, column.index, error) from error
        # One pass gives the norm and, if it is finite, proves every coordinate finite.
        part = float(torch.dot(chunk, chunk))
        if not math.isfinite(part):
            if not bool(torch.isfinite(chunk).all()):
                vector = layout.groups[column.group]
                at = vector.chunk_bounds(column.index)[0] + int((~torch.isfinite(chunk)).nonzero()[0])
                raise UpdateRejected(
                    "update.not_finite",
                    f"the update has a NaN or infinite value in tensor {vector.tensor_at(at)!r}",
                    cause="training diverged on the peer, or the peer lies",
                    fix="lower train.lr or set train.clip_norm",
                )
            wide = chunk.double()
            part = float(torch.dot(wide, wide))
        square += part
    return math.sqrt(square)


def _check_counters(reader: PayloadReader, vector: Vector) -> None:
    """That each is one of its dtype."""
    for index in range(vector.chunk_count):
        start, stop = vector.chunk_bounds(index)
        try:
            values = integers.decode(reader.chunk(COUNTERS, index), stop - start)
        except compressors.DecodeError as error:
            raise _undecodable(COUNTERS, index, error) from error
        for piece in chunk_pieces(vector, index):
            part = values[piece.at : piece.at + piece.stop - piece.start]
            least, most = bounds(TORCH_DTYPES[piece.spec.dtype])
            if int(part.min()) < least or int(part.max()) > most:
                raise UpdateRejected(
                    "update.out_of_range",
                    f"the update's {piece.spec.name!r} has a value that {piece.spec.dtype} cannot have",
                    cause="the peer lies",
                )


def _undecodable(group: str, index: int, error: compressors.DecodeError) -> UpdateRejected:
    return UpdateRejected(
        "update.undecodable",
        f"chunk {index} of the update's {group}: {error}",
        cause="the peer's codec is another version, or the peer lies",
        fix="install the same version of Muster on coordinator and peer",
    )
