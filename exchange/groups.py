"""Groups of tensors that a local algorithm sends beside the model's update: what one is, and how its chunks are coded.

An algorithm declares its groups; sizes, codecs and folds come from the declaration, the run spec and the model's
layout, never from an update. A group travels in the update file under its own name, in chunks of 2^18 values, as the
parameters do, and is folded over the round's updates (`exchange.folds`). What is kept lies beside the model version
under "group/" and its name, and peers fetch it with their base.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import compressors
from compressors.compose.planned import Planned
from compressors.core import integers
from compressors.feedback.feedback import LOSSLESS
from compressors.lowrank.lowrank import LowRank
from exchange.contexts import ChunkContexts, pieces
from exchange.names import KEPT
from muster.errors import ConfigError, TaskError
from muster.model.layout import (
    BUFFERS,
    CHUNK_COORDINATES,
    COUNTERS,
    PARAMS,
    ParameterLayout,
    TensorSpec,
    Vector,
)
from muster.plugins import names as plugin_names
from muster.seeds import derive_seed

GROUPS_MAX = 16  # of one algorithm
NAME_CHARACTERS_MAX = 64
_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{NAME_CHARACTERS_MAX}}}")
SIZE_MAX = 1 << 40  # values of one group

F32, F64, I64 = "F32", "F64", "I64"
DTYPES: Mapping[str, torch.dtype] = {F32: torch.float32, F64: torch.float64, I64: torch.int64}
LOSSLESS_OF: Mapping[str, str] = {F32: LOSSLESS, F64: "float64+zstd", I64: integers.SPELLING}

MEAN, SUM, SHARES, MAX, MIN, ANY = "mean", "sum", "shares", "max", "min", "any"
FOLDS = (MEAN, SUM, SHARES, MAX, MIN, ANY)
REPLACE, ADD = "replace", "add"
KEEPS = ("", REPLACE, ADD)


@dataclass(frozen=True, kw_only=True)
class Group:
    """One group of an algorithm. Raises `ConfigError` "train.bad_group" where it cannot be one.

    name       of the group; "params", "buffers" and "counters" are the model's own
    tensors    the shape of each tensor by its name, in their order; None: those of the model that are trained
    dtype      of all its values: "F32", "F64" or "I64"
    codec      of its chunks, any of the update's codecs for F32; "": without loss
    feedback   error feedback kept on the peer, such as "ef14"
    fold       what a round makes of the updates' values:
               "mean", "sum"        of all of them, each counting alike
               "shares"             their sum with the shares that the run's rule has given the updates
               "max", "min", "any"  the greatest, the least, 1 where any is not 0
               or the name of an aggregation rule such as "median", which bears the run's f (F32 only)
    keep       "": the coordinator admits the group and does no more; "replace": what the fold gives is kept beside the
               new version and comes down to peers with it; "add": it is added to what was kept
    norm_max   admission refuses a group of greater L2 norm
    """

    name: str
    tensors: Mapping[str, tuple[int, ...]] | None = None
    dtype: str = F32
    codec: str = ""
    feedback: str = "none"
    fold: str = MEAN
    keep: str = ""
    norm_max: float | None = None

    def __post_init__(self) -> None:
        if wrong := _wrong(self):
            raise ConfigError(
                "train.bad_group",
                f"the group {self.name!r} cannot be: {wrong}",
                fix="correct the algorithm's `groups`",
            )

    @property
    def spelling(self) -> str:
        """Of its codec, as update files name it."""
        return compressors.build(self.codec).spelling if self.codec else LOSSLESS_OF[self.dtype]

    @property
    def state_name(self) -> str:
        """Under which it is kept beside a version."""
        return f"{KEPT}{self.name}"

    def dense_bytes(self, layout: ParameterLayout) -> int:
        """Of its values, without any codec."""
        return DTYPES[self.dtype].itemsize * self.vector(layout).size

    def vector(self, layout: ParameterLayout) -> Vector:
        """Its tensors one after the other, of a model with this layout."""
        if self.tensors is None:
            rows = [(spec.name, spec.shape) for spec in layout.tensors]
        else:
            rows = list(self.tensors.items())
        return Vector(
            tensors=tuple(TensorSpec(name=name, shape=tuple(shape), dtype=self.dtype) for name, shape in rows)
        )


def _wrong(group: Group) -> str | None:
    name = group.name
    if not _NAME.fullmatch(name):
        return f"its name has letters, digits, - and _ only, {NAME_CHARACTERS_MAX} at most"
    if name in (PARAMS, BUFFERS, COUNTERS):
        return "that is what the model's own group is called"
    if group.dtype not in DTYPES:
        return f"its dtype is {group.dtype!r}, none of {', '.join(DTYPES)}"
    if group.keep not in KEEPS:
        return f"keep is {group.keep!r}, none of {', '.join(map(repr, KEEPS))}"
    if group.tensors is not None:
        size = Vector(
            tensors=tuple(
                TensorSpec(name=n, shape=tuple(s), dtype=group.dtype) for n, s in group.tensors.items()
            )
        ).size
        if not 0 < size <= SIZE_MAX:
            return f"it has {size} values, not 1 to {SIZE_MAX}"
    return _wrong_fold(group) or _wrong_codec(group)


def _wrong_fold(group: Group) -> str | None:
    if group.fold not in FOLDS and (group.fold not in plugin_names("muster.rules") or group.dtype != F32):
        return f"fold {group.fold!r} is none of {', '.join(FOLDS)}, nor, of an F32 group, an aggregation rule"
    if group.dtype == I64 and group.fold in (MEAN, SHARES):
        return f"integers have no {group.fold}: fold is sum, max, min or any"
    return None


def _wrong_codec(group: Group) -> str | None:
    if group.dtype != F32:
        lossy = group.codec or (group.feedback != "none" and group.feedback)
        return f"{group.dtype} travels without loss, and {lossy} is for F32" if lossy else None
    try:
        codec = compressors.build(group.codec or LOSSLESS)
        feedback = compressors.build_feedback(group.feedback)
    except compressors.CodecError as error:
        return str(error)
    if isinstance(codec, Planned) or (isinstance(codec, LowRank) and codec.common):
        return f"the codec {group.codec} is for the parameters alone"
    if feedback.receiver_state_names or feedback.has_momentum or feedback.whole_batches:
        return f"the feedback {group.feedback} is for the parameters alone: ef14 or none"
    return feedback.refuse(codec, CHUNK_COORDINATES)


def kept_names(groups: Sequence[Group]) -> tuple[str, ...]:
    """Under which the coordinator keeps them beside a version."""
    return tuple(group.state_name for group in groups if group.keep)


class GroupCoder:
    """Codes the chunks of one group of one sender's update, in tensors of the group's dtype."""

    def __init__(self, group: Group, vector: Vector, places: ChunkContexts) -> None:
        """`places` are those of the update's parameters."""
        self.group = group
        self.vector = vector
        self.dtype = DTYPES[group.dtype]
        self.feedback = compressors.build_feedback(group.feedback)
        self._codec = compressors.build(group.codec or LOSSLESS)
        self._digest = derive_seed(places.base_digest, "group", group.name)
        self._places = places

    def bytes_max(self) -> int:
        """No honest update has more bytes of it."""
        sizes = [
            stop - start for start, stop in map(self.vector.chunk_bounds, range(self.vector.chunk_count))
        ]
        most = self._codec.bytes_max if self.group.dtype == F32 else integers.bytes_max
        return sum(map(most, sizes))

    def encode(self, index: int, values: Tensor, state: dict[str, Tensor], seed: int) -> bytes:
        """Chunk `index`, [c]; `state` is the feedback's, updated in place."""
        if self.group.dtype == F32:
            return self.feedback.encode(
                self._at(index), values, state, derive_seed(seed, self.group.name, index)
            )
        return integers.encode(values.view(torch.int64))

    def decode(self, index: int, body: memoryview, out: Tensor) -> None:
        """Fills `out` [c]. Raises `DecodeError`."""
        if self.group.dtype == F32:
            self._at(index).decode(body, out)
        else:
            out.copy_(integers.decode(body, len(out)).view(self.dtype))

    def _at(self, index: int) -> compressors.Codec:
        common = derive_seed(self._digest, "place", self._places.round, index)
        own = derive_seed(common, self._places.sender)
        return self._codec.at(compressors.ChunkContext(common, own, *pieces(self.vector, index)))


def flat_chunks(group: Group, vector: Vector, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """The group's values as one chunk after the other. Raises `TaskError` "train.bad_contribution" where they are not
    what was declared, or not finite."""
    if set(tensors) != {spec.name for spec in vector.tensors}:
        odd = sorted(set(tensors) ^ {spec.name for spec in vector.tensors})[0]
        raise _bad(group, f"{odd!r} is {'no tensor of it' if odd in tensors else 'missing'}")
    parts: list[Tensor] = []
    for spec in vector.tensors:
        values = tensors[spec.name]
        if tuple(values.shape) != spec.shape:
            raise _bad(group, f"{spec.name!r} has shape {list(values.shape)}, not {list(spec.shape)}")
        flat = values.detach().to("cpu", DTYPES[group.dtype]).reshape(-1)
        if flat.is_floating_point() and not bool(flat.isfinite().all()):
            raise _bad(group, f"{spec.name!r} has values that are not finite")
        parts.append(flat)
    return list(torch.split(torch.cat(parts), CHUNK_COORDINATES))


def _bad(group: Group, what: str) -> TaskError:
    return TaskError(
        "train.bad_contribution",
        f"the algorithm's group {group.name!r} is not as it declares it: {what}",
        fix="correct the algorithm: `Contribution.groups` has every declared group, whole",
    )
