"""What goes down to the peers: the server's step itself is compressed, so that a version is what peers can decode.

    p = step + e;  m = C(p);  e = p - m;  new version = base + m

The body of C(p) is kept beside the version as its delta. Whoever holds the base makes the new version of it to the last
bit, and the digest proves it; everybody else fetches the version whole. There is one model, the one that peers train
from, and e, the residual, is the coordinator's alone: EF14 (Seide et al. 2014) on the server's side. Whatever the rule
did, it did before.

`down = "replay"` sends, instead of a body of the step, the updates that it is a weighted sum of, each with its share,
see `compressors.replay`: the peers repeat the sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

import compressors
from compressors.replay import PREFIX, Replay, Term, write
from muster.layout import CHUNK_COORDINATES, ParameterLayout
from muster.payload import GroupSpec, Manifest, PayloadWriter
from muster.places import Places
from muster.seeds import derive_seed
from muster.spec.model import RunSpec


def state_names(spec: RunSpec) -> tuple[str, ...]:
    """The vectors [d] that the downlink keeps from version to version."""
    if not compresses(spec) or replays(spec):
        return ()
    names = compressors.build_feedback(spec.compression.down_feedback).state_names
    return tuple(f"down/{name}" for name in names)


def compresses(spec: RunSpec) -> bool:
    return spec.compression.down != "identity"


def replays(spec: RunSpec) -> bool:
    return spec.compression.down == "replay"


class Delta:
    """The file that leads from one version to the next, chunk by chunk in order. Raises `StorageError`."""

    def __init__(
        self, codec: str, layout: ParameterLayout, out: Path, *, base_digest: str, round: int
    ) -> None:
        self._places = Places(layout=layout, base_digest=base_digest, round=round)
        self._index = 0
        self._step = torch.empty(min(CHUNK_COORDINATES, layout.size))
        self._writer = PayloadWriter(
            out,
            Manifest(
                run_id="",
                round=round,
                assignment_id="",
                base_digest=base_digest,
                layout_digest=layout.digest,
                groups=(GroupSpec(name="params", codec=codec, size=layout.size),),
            ),
        )

    def _place(self) -> compressors.Place:
        """Of the chunk that is next."""
        return compressors.Place(*self._places.facts(self._index))

    def _append(self, body: bytes) -> None:
        self._writer.append("params", body)
        self._index += 1

    def finish(self) -> str:
        """The delta's digest."""
        return self._writer.finish().digest

    def close(self) -> None:
        self._writer.close()


class Downlink(Delta):
    """One version's step, encoded."""

    def __init__(
        self, spec: RunSpec, layout: ParameterLayout, out: Path, *, base_digest: str, round: int
    ) -> None:
        self._codec = compressors.build(spec.compression.down)
        self._feedback = compressors.build_feedback(spec.compression.down_feedback)
        self._seed = derive_seed(spec.seed, "down", round)
        super().__init__(self._codec.spelling, layout, out, base_digest=base_digest, round=round)

    def take(self, base: Tensor, new: Tensor, state: Mapping[str, Tensor]) -> None:
        """Makes of `new` [c] what the peers will decode from `base` [c]; `state` [c] each, in place."""
        step = self._step[: len(new)]
        torch.sub(new, base, out=step)
        kept = {name.partition("/")[2]: state[name] for name in state if name.startswith("down/")}
        codec = self._codec.at(self._place())
        body = self._feedback.encode(codec, step, kept, derive_seed(self._seed, "codec", self._index))
        codec.decode(body, step)
        torch.add(base, step, out=new)
        self._append(body)


class Replayed(Delta):
    """One version's step as the sum of the round's updates, which are encoded with `up`."""

    def __init__(self, up: str, layout: ParameterLayout, out: Path, *, base_digest: str, round: int) -> None:
        self._replay = Replay(compressors.build(up))
        super().__init__(f"{PREFIX}{up}", layout, out, base_digest=base_digest, round=round)

    def take(self, base: Tensor, new: Tensor, terms: Sequence[Term]) -> None:
        """Makes of `new` [c] what the peers will: `base` [c] and the sum of the terms."""
        body, step = write(terms), self._step[: len(new)]
        self._replay.at(self._place()).decode(body, step)
        torch.add(base, step, out=new)
        self._append(body)
