"""One round's aggregation over files: equal to the mathematics, the same bytes each time, refused when it must be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from coordinator.aggregation import (
    AggregationJob,
    AggregationRefused,
    AggregationResult,
    UpdateInput,
    aggregate,
)
from muster.modelfile import ModelFile
from muster.spec.model import RunSpec

MakeSpec = Callable[..., RunSpec]


def vectors(bench: Any, n: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(bench.layout.size, generator=generator) for _ in range(n)]


def run(
    bench: Any, spec: RunSpec, updates: list[Tensor], out: str = "out", states: dict[str, Path] | None = None
) -> tuple[AggregationResult, Tensor]:
    inputs = [
        UpdateInput(assignment_id=f"a{i}", path=bench.update(f"u{i}", vector), examples=10 * (i + 1))
        for i, vector in enumerate(updates)
    ]
    from coordinator import optimizers

    names = optimizers.build(spec.server).state_names
    job = AggregationJob(
        spec=spec,
        base=bench.base,
        updates=inputs,
        states=states or {},
        model_out=bench.folder / out,
        states_out={name: bench.folder / f"{out}.{name}" for name in names},
    )
    result = aggregate(job)
    file = ModelFile(bench.folder / out)
    moved = file.vector - base_vector(bench)
    file.close()
    return result, moved


def base_vector(bench: Any) -> Tensor:
    file = ModelFile(bench.base)
    vector = file.vector.clone()
    file.close()
    return vector


def test_the_mean_is_weighted_by_capped_examples(bench: Any, make_spec: MakeSpec) -> None:
    updates = vectors(bench, 3)
    spec = make_spec(aggregation={"examples_max": 20})
    result, moved = run(bench, spec, updates)
    wanted = (10 * updates[0] + 20 * updates[1] + 20 * updates[2]) / 50
    torch.testing.assert_close(moved, wanted, rtol=1e-4, atol=1e-5)
    assert [t.weight for t in result.treatments] == pytest.approx([0.2, 0.4, 0.4])


def test_a_robust_rule_ignores_declared_examples_and_an_outlier(bench: Any, make_spec: MakeSpec) -> None:
    updates = vectors(bench, 5)
    updates[4] = torch.full_like(updates[4], 1e30)
    spec = make_spec(aggregation={"rule": "trimmed-mean", "pre": ["arc", "nnm"], "faults": 1})
    _, moved = run(bench, spec, updates)
    assert float(moved.norm()) < 2 * max(float(update.norm()) for update in updates[:4])


def test_krum_moves_by_exactly_one_of_the_updates(bench: Any, make_spec: MakeSpec) -> None:
    updates = vectors(bench, 5)
    result, moved = run(bench, make_spec(aggregation={"rule": "krum", "faults": 1}), updates)
    (winner,) = [i for i, treated in enumerate(result.treatments) if treated.selected]
    torch.testing.assert_close(moved, updates[winner], rtol=1e-4, atol=1e-5)


def test_done_again_it_writes_the_same_bytes(bench: Any, make_spec: MakeSpec) -> None:
    spec = make_spec(
        aggregation={"rule": "trimmed-mean", "pre": ["nnm"], "faults": 1}, server={"optimizer": "adam"}
    )
    first, _ = run(bench, spec, vectors(bench, 5), "one")
    second, _ = run(bench, spec, vectors(bench, 5), "two")
    assert first.model_digest == second.model_digest
    assert first.state_digests == second.state_digests
    assert set(first.state_digests) == {"first_moment", "second_moment"}


def test_the_optimizers_state_carries_over(bench: Any, make_spec: MakeSpec) -> None:
    updates = vectors(bench, 2)
    mean = (updates[0] + updates[1]) / 2
    spec = make_spec(aggregation={"weights": "uniform"}, server={"optimizer": "momentum", "momentum": 0.5})
    run(bench, spec, updates, "one")
    _, moved = run(bench, spec, updates, "two", states={"momentum": bench.folder / "one.momentum"})
    torch.testing.assert_close(moved, 1.5 * mean, rtol=1e-4, atol=1e-5)


def test_below_the_rules_bound_it_refuses_with_the_bound(bench: Any, make_spec: MakeSpec) -> None:
    spec = make_spec(aggregation={"rule": "krum", "faults": 2})
    with pytest.raises(AggregationRefused, match=r"n > 2f \+ 2"):
        run(bench, spec, vectors(bench, 5))


def test_a_step_that_overflows_is_refused(bench: Any, make_spec: MakeSpec) -> None:
    huge = [torch.full((bench.layout.size,), 3e38)] * 2
    with pytest.raises(AggregationRefused, match="not finite"):
        run(bench, make_spec(server={"lr": 10.0}), huge)
