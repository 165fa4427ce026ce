"""What sites of unlike size weigh in a mean: their examples, however many, unless the spec caps them, which is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exchange.admission import admit
from exchange.aggregation import aggregate
from exchange.job import AggregationJob, AggregationResult, UpdateBase, UpdateInput
from muster.files.digests import digest_file
from muster.model.modelfile import ModelFile
from muster.spec.model import RunSpec
from tests.exchange.conftest import BASE, Bench

COUNTS = (60_000, 20_000, 12_000)


def mean_of(folder: Path, counts: tuple[int, ...], **table: Any) -> tuple[AggregationResult, list[float]]:
    """A round of peers whose update i moves coordinate i alone, by 1: how far each has moved is whose share it has."""
    bench = Bench(folder, len(counts))
    spec = RunSpec.model_validate(
        {
            "task": "some.where:Task",
            "rounds": 1,
            "aggregation": {"rule": "mean", **table},
            "compression": {"up": "identity"},
        }
    )
    updates: list[UpdateInput] = []
    for i, count in enumerate(counts):
        path = bench.update(f"u{i}", torch.eye(len(counts))[i], scalars={"examples": float(count)})
        facts = admit(path, digest_file(path), bench.expected(spec))
        updates.append(
            UpdateInput(
                assignment_id=f"a{i}",
                peer_id=f"site-{i}",
                path=path,
                examples=facts.examples,
                base=UpdateBase(version=0, digest=BASE, round=1),
            )
        )
    before = ModelFile(bench.base)
    result = aggregate(
        AggregationJob(
            spec=spec,
            base=bench.base,
            updates=updates,
            states={},
            base_version=0,
            base_digest=digest_file(bench.base),
            round=1,
            cohort=len(counts),
            model_out=folder / "out",
            states_out={},
        )
    )
    after = ModelFile(folder / "out")
    moved = (after.vector - before.vector).tolist()
    before.close()
    after.close()
    return result, moved


def test_every_example_counts_and_nothing_is_told(tmp_path: Path) -> None:
    result, moved = mean_of(tmp_path, COUNTS)
    wanted = pytest.approx([count / 92_000 for count in COUNTS])
    assert [each.weight for each in result.treatments] == wanted
    assert moved == pytest.approx([count / 92_000 for count in COUNTS], abs=1e-6)
    assert result.warnings == () and "count as" not in result.reason


def test_a_cap_makes_them_alike_and_says_whom(tmp_path: Path) -> None:
    result, moved = mean_of(tmp_path, COUNTS, examples_max=15_000)
    assert moved == pytest.approx([15 / 42, 15 / 42, 12 / 42], abs=1e-6)
    told = "the examples of 2 of 3 updates (site-0, site-1) count as 15000, which is aggregation.examples_max"
    assert result.warnings == (("examples.capped", told),)
    assert told in result.reason


def test_a_cap_that_nobody_passes_is_not_told(tmp_path: Path) -> None:
    result, moved = mean_of(tmp_path, COUNTS, examples_max=60_000)
    assert moved == pytest.approx([count / 92_000 for count in COUNTS], abs=1e-6)
    assert result.warnings == ()


def test_where_examples_do_not_count_no_cap_is_told(tmp_path: Path) -> None:
    result, moved = mean_of(tmp_path, COUNTS, examples_max=15_000, weights="uniform")
    assert moved == pytest.approx([1 / 3] * 3, abs=1e-6)
    assert result.warnings == ()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    counts=st.lists(st.integers(1, 2**53), min_size=2, max_size=5).map(tuple),
    cap=st.none() | st.integers(1, 2**53),
)
def test_shares_are_those_of_the_counts(counts: tuple[int, ...], cap: int | None, tmp_path: Path) -> None:
    result, moved = mean_of(tmp_path, counts, examples_max=cap)
    counted = [min(count, cap or count) for count in counts]
    assert moved == pytest.approx([count / sum(counted) for count in counted], abs=1e-6)
    assert bool(result.warnings) == (counted != list(counts))
