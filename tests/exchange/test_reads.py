"""How often the bytes of an update are read after the wire, by admission and the reduction, and its header parsed."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from exchange import manifest, payload
from exchange.admission import admit
from exchange.aggregation import aggregate
from exchange.job import AggregationJob, UpdateBase, UpdateInput
from exchange.payload import PayloadReader
from muster.errors import StorageError
from muster.files.digests import digest_file
from muster.spec.model import RunSpec

UPDATES = 3
MakeSpec = Callable[..., RunSpec]


class Counted:
    """Counts what is asked of mapped updates, hashed bytes apart: those of a chunk are hashed when it is read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.chunks: Counter[tuple[Path, str, int]] = Counter()
        self.left: Counter[Path] = (
            Counter()
        )  # bytes that are hashed though nobody had asked for them in order
        self.parsed = 0
        chunk, verify, parse = PayloadReader.chunk, PayloadReader.verify, manifest._parse

        def counted(reader: PayloadReader, group: str, index: int) -> memoryview:
            self.chunks[reader._path, group, index] += 1
            return chunk(reader, group, index)

        def verified(reader: PayloadReader) -> None:
            assert reader._data is not None
            self.left[reader._path] += len(reader._data) - reader._hashed
            verify(reader)

        def parsed(file: memoryview) -> Any:
            self.parsed += 1
            return parse(file)

        monkeypatch.setattr(PayloadReader, "chunk", counted)
        monkeypatch.setattr(PayloadReader, "verify", verified)
        monkeypatch.setattr(manifest, "_parse", parsed)


@pytest.fixture(autouse=True)
def _no_headers_of_others(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(manifest, "_remembered", manifest._Remembered())
    yield


def inputs(bench: Any, spec: RunSpec) -> list[UpdateInput]:
    generator = torch.Generator().manual_seed(5)
    found: list[UpdateInput] = []
    for number in range(UPDATES):
        vector = torch.randn(bench.layout.size, generator=generator)
        path = bench.update(f"u{number}", vector, spec.compression.up, scalars={"examples": 10.0 + number})
        digest = digest_file(path)
        facts = admit(path, digest, bench.expected(spec))
        base = UpdateBase(version=0, digest="b" * 64, round=1)
        found.append(
            UpdateInput(
                assignment_id=f"a{number}",
                peer_id=f"p{number}",
                path=path,
                examples=facts.examples,
                base=base,
                digest=digest,
            )
        )
    return found


def job_of(bench: Any, spec: RunSpec, updates: list[UpdateInput], **more: Any) -> AggregationJob:
    return AggregationJob(
        spec=spec,
        base=bench.base,
        updates=updates,
        states={},
        base_version=0,
        base_digest="b" * 64,
        round=1,
        cohort=UPDATES,
        model_out=bench.folder / "out",
        states_out={},
        **more,
    )


@pytest.mark.parametrize("up", ["identity", "int8"])
@pytest.mark.parametrize("rule", ["mean", "median", "krum"])
def test_an_update_is_read_twice_and_its_header_parsed_once(
    bench: Any, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch, rule: str, up: str
) -> None:
    """Also by a rule that sweeps the columns twice, of a small model."""
    spec = make_spec(aggregation={"rule": rule, "faults": 0}, compression={"up": up, "feedback": "none"})
    counted = Counted(monkeypatch)
    updates = inputs(bench, spec)
    assert counted.parsed == UPDATES
    aggregate(job_of(bench, spec, updates))
    assert set(counted.chunks.values()) == {2}
    assert len(counted.chunks) == UPDATES * bench.layout.chunk_count
    assert not any(counted.left.values())
    assert counted.parsed == UPDATES


def test_beyond_the_budget_a_rule_that_sweeps_twice_reads_three_times(
    bench: Any, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(
        aggregation={"rule": "krum", "faults": 0}, compression={"up": "int8", "feedback": "none"}
    )
    counted = Counted(monkeypatch)
    updates = inputs(bench, spec)
    aggregate(job_of(bench, spec, updates, scratch_bytes_max=UPDATES << 20))
    assert set(counted.chunks.values()) == {2, 3}  # three: of the update that is chosen


@pytest.mark.parametrize("place", [0.02, 0.5, 1.0])
@pytest.mark.parametrize("rule", ["mean", "krum"])
def test_a_bit_that_the_disk_has_changed_is_found_as_the_update_is_read(
    bench: Any, make_spec: MakeSpec, rule: str, place: float
) -> None:
    spec = make_spec(
        aggregation={"rule": rule, "faults": 0}, compression={"up": "identity", "feedback": "none"}
    )
    updates = inputs(bench, spec)
    path = updates[1].path
    raw = bytearray(path.read_bytes())
    raw[int(place * (len(raw) - 1))] ^= 1
    path.write_bytes(raw)
    with pytest.raises(StorageError, match="other bytes than were stored"):
        aggregate(job_of(bench, spec, updates))


def test_a_file_whose_chunks_stand_in_another_order_is_verified_too(bench: Any, make_spec: MakeSpec) -> None:
    del make_spec
    path = bench.update("u", torch.ones(bench.layout.size))
    reader = PayloadReader(path, digest=digest_file(path))
    reader.chunk("params", 1)
    reader.verify()
    reader.close()
    reader = PayloadReader(path, digest="0" * 64)
    reader.chunk("params", 0)
    with pytest.raises(StorageError, match="other bytes"):
        reader.verify()


def test_remembered_headers_are_bounded(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "CHUNKS_REMEMBERED_MAX", 5)
    for number in range(6):
        PayloadReader(
            bench.update("u", torch.full((bench.layout.size,), float(number)), round=number)
        ).close()
    assert manifest._remembered._chunks <= 5
    assert len(manifest._remembered._headers) == 2
    assert payload.parse_header is manifest.parse_header


def test_a_spec_is_parsed_once(make_spec: MakeSpec) -> None:
    text = make_spec().canonical_json()
    assert RunSpec.from_json(text) is RunSpec.from_json(text)
    assert RunSpec.from_json(text).canonical_json() == text
