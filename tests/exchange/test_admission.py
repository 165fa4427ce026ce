"""An update passes whole or is rejected by name; nothing is mended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from exchange.admission import admit, update_bytes_max
from exchange.payload import GroupSpec
from muster.errors import UpdateRejected
from muster.spec.model import RunSpec

MakeSpec = Callable[..., RunSpec]


def rejected(bench: Any, spec: RunSpec, path: Any) -> UpdateRejected:
    with pytest.raises(UpdateRejected) as caught:
        admit(path, "digest", bench.expected(spec))
    return caught.value


@pytest.mark.parametrize("codec", ["identity", "bf16", "int8", "topk:0.01"])
def test_an_honest_update_is_measured(bench: Any, make_spec: MakeSpec, codec: str) -> None:
    vector = torch.randn(bench.layout.size, generator=torch.Generator().manual_seed(1))
    path = bench.update("u", vector, codec)
    spec = make_spec(compression={"up": codec, "feedback": "none"})
    facts = admit(path, "digest", bench.expected(spec))
    assert facts.examples == 10
    assert facts.metrics == {"loss": 0.5}
    assert facts.dense_bytes == 4 * bench.layout.size
    assert facts.size_bytes == path.stat().st_size <= update_bytes_max(spec, bench.layout, 0)
    if codec == "identity":
        assert facts.norm == pytest.approx(float(vector.double().norm()), rel=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_rejected_with_the_tensor_named(
    bench: Any, make_spec: MakeSpec, value: float
) -> None:
    vector = torch.zeros(bench.layout.size)
    vector[-1] = value
    error = rejected(bench, make_spec(), bench.update("u", vector))
    assert error.id == "update.not_finite"
    assert "'weight'" in error.message


def test_a_long_update_is_left_to_the_rules_while_they_can_tell_it(bench: Any, make_spec: MakeSpec) -> None:
    size = bench.layout.size
    facts = admit(bench.update("u", torch.full((size,), 1e14)), "digest", bench.expected(make_spec()))
    assert facts.norm == pytest.approx(1e14 * size**0.5, rel=1e-4)
    for value in (1e18, 1e30, 3e38):
        error = rejected(bench, make_spec(), bench.update("u", torch.full((size,), value)))
        assert error.id == "update.norm_too_large"
        assert f"{value * size**0.5:.3g}"[:3] in error.message


def test_the_norm_cap_is_the_specs(bench: Any, make_spec: MakeSpec) -> None:
    path = bench.update("u", torch.ones(bench.layout.size))
    spec = make_spec(aggregation={"norm_max": 100.0})
    assert rejected(bench, spec, path).id == "update.norm_too_large"
    admit(path, "digest", bench.expected(make_spec(aggregation={"norm_max": 1000.0})))


@pytest.mark.parametrize(
    ("manifest", "what"),
    [
        ({"run_id": "other"}, "run"),
        ({"round": 2}, "round"),
        ({"assignment_id": "run.1.other.1"}, "assignment"),
        ({"base_digest": "c" * 64}, "base model"),
        ({"layout_digest": "d" * 64}, "layout"),
    ],
)
def test_an_update_for_something_else_is_rejected(
    bench: Any, make_spec: MakeSpec, manifest: dict[str, Any], what: str
) -> None:
    error = rejected(bench, make_spec(), bench.update("u", torch.zeros(bench.layout.size), **manifest))
    assert error.id == "update.mismatch"
    assert f"the update's {what} is" in error.message


def test_a_vector_of_another_length_is_rejected(bench: Any, make_spec: MakeSpec) -> None:
    short = torch.zeros(bench.layout.size - 1)
    assert rejected(bench, make_spec(), bench.update("u", short)).id == "update.mismatch"
    lying = (GroupSpec(name="params", codec="identity", size=bench.layout.size),)
    assert rejected(bench, make_spec(), bench.update("v", short, groups=lying)).id == "update.undecodable"


def test_another_codec_than_the_runs_is_rejected(bench: Any, make_spec: MakeSpec) -> None:
    path = bench.update("u", torch.zeros(bench.layout.size), "bf16")
    assert rejected(bench, make_spec(), path).id == "update.mismatch"


@pytest.mark.parametrize("examples", [0.0, -5.0, 2.5, float("nan"), float("inf"), 1e300])
def test_a_count_that_is_no_count_is_rejected(bench: Any, make_spec: MakeSpec, examples: float) -> None:
    path = bench.update("u", torch.zeros(bench.layout.size), scalars={"examples": examples})
    assert rejected(bench, make_spec(), path).id == "update.bad_examples"


def test_other_source_code_is_refused_where_the_run_wants_the_same(bench: Any, make_spec: MakeSpec) -> None:
    vector = torch.zeros(bench.layout.size)
    own, other, silent = (
        bench.update(name, vector, source_digest=digest)
        for name, digest in zip("abc", ("1" * 64, "2" * 64, ""), strict=True)
    )
    expected = bench.expected(make_spec(task_sources="same"), "1" * 64)
    assert admit(own, "digest", expected).source_digest == "1" * 64
    for path in (other, silent):
        with pytest.raises(UpdateRejected) as caught:
            admit(path, "digest", expected)
        assert caught.value.id == "update.other_sources"
    assert admit(other, "digest", bench.expected(make_spec(), "1" * 64)).source_digest == "2" * 64
    admit(
        other, "digest", bench.expected(make_spec(task_sources="same"))
    )  # the coordinator knows none of its own


def test_rubbish_is_rejected(bench: Any, make_spec: MakeSpec) -> None:
    whole = bench.update("u", torch.ones(bench.layout.size)).read_bytes()
    path = bench.folder / "rubbish"
    for body in (b"", whole[:1000], whole[:-1], whole + b"x", b"\xff" * 5000):
        path.write_bytes(body)
        assert rejected(bench, make_spec(), path).id == "update.malformed"
