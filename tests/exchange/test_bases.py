"""Updates of one aggregation that were made against different versions: each is decoded against its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import compressors
from exchange import links
from exchange.admission import admit
from exchange.aggregation import aggregate
from exchange.job import AggregationJob, UpdateBase, UpdateInput
from exchange.recipe import AggregationRefused
from muster.files.digests import digest_file
from muster.model.modelfile import ModelFile
from muster.spec.model import RunSpec

MakeSpec = Callable[..., RunSpec]
BASES = (UpdateBase(version=3, digest="3" * 64, round=4), UpdateBase(version=5, digest="5" * 64, round=6))


def job_of(bench: Any, spec: RunSpec, vectors: list[Tensor]) -> tuple[AggregationJob, list[Tensor]]:
    """An aggregation onto version 5, and what the sender of each update knows that it has sent."""
    inputs: list[UpdateInput] = []
    sent: list[Tensor] = []
    for number, (base, vector) in enumerate(zip(BASES, vectors, strict=True)):
        peer = f"p{number}"
        contexts = links.contexts(spec, bench.layout, base_digest=base.digest, round=base.round, peer_id=peer)
        path = bench.update(
            peer,
            vector,
            spec.compression.up,
            contexts=contexts,
            round=base.round,
            base_digest=base.digest,
            assignment_id=peer,
        )
        expected = replace(
            bench.expected(spec),
            assignment_id=peer,
            peer_id=peer,
            round=base.round,
            base_version=base.version,
            base_digest=base.digest,
        )
        facts = admit(path, digest_file(path), expected)
        inputs.append(
            UpdateInput(assignment_id=peer, peer_id=peer, path=path, examples=facts.examples, base=base)
        )
        codec, parts = compressors.build(spec.compression.up), []
        for index, chunk in enumerate(vector.split(1 << 18)):
            bound, out = codec.at(contexts.at(index)), torch.empty(len(chunk))
            bound.decode(memoryview(bound.encode(chunk, 0)), out)
            parts.append(out)
        sent.append(torch.cat(parts))
    job = AggregationJob(
        spec=spec,
        base=bench.base,
        updates=inputs,
        states={},
        base_version=BASES[1].version,
        base_digest=BASES[1].digest,
        round=BASES[1].round,
        cohort=2,
        model_out=bench.folder / "out",
        states_out={"down/delta": bench.folder / "delta"},
    )
    return job, sent


@pytest.mark.parametrize("up", ["randk:0.3", "ferret:16"])
def test_each_update_is_decoded_against_the_base_that_it_was_made_against(
    bench: Any, make_spec: MakeSpec, up: str
) -> None:
    spec = make_spec(
        aggregation={"rule": "mean", "weights": "uniform"}, compression={"up": up, "feedback": "none"}
    )
    generator = torch.Generator().manual_seed(7)
    vectors = [torch.randn(bench.layout.size, generator=generator) for _ in BASES]
    job, sent = job_of(bench, spec, vectors)
    aggregate(job)
    before, after = ModelFile(bench.base), ModelFile(job.model_out)
    moved = after.vector - before.vector
    before.close()
    after.close()
    torch.testing.assert_close(moved, (sent[0] + sent[1]) / 2, atol=1e-5, rtol=1e-5)


def test_updates_against_older_versions_are_not_replayed_down(bench: Any, make_spec: MakeSpec) -> None:
    spec = make_spec(
        aggregation={"rule": "mean"}, compression={"up": "randk:0.3", "feedback": "none", "down": "replay"}
    )
    job, _ = job_of(bench, spec, [torch.ones(bench.layout.size) for _ in BASES])
    with pytest.raises(AggregationRefused, match="against an older version"):
        aggregate(job)
