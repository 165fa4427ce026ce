"""One round's aggregation over files: equal to the mathematics, the same bytes each time, refused when it must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from coordinator.submission.checks import check_spec
from exchange import links, step
from exchange.aggregation import aggregate, state_names
from exchange.downlink import DRIFT
from exchange.job import AggregationJob, AggregationResult, UpdateBase, UpdateInput
from exchange.names import DELTA, SCALE
from exchange.payload import PayloadReader, PayloadWriter
from exchange.rebuild import rebuild
from exchange.recipe import AggregationRefused
from muster.errors import ConfigError, TransferError
from muster.files.digests import digest_file
from muster.model.modelfile import ModelFile
from muster.spec.model import RunSpec

MakeSpec = Callable[..., RunSpec]


def vectors(bench: Any, n: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(bench.layout.size, generator=generator) for _ in range(n)]


def run(
    bench: Any,
    spec: RunSpec,
    updates: list[Tensor],
    out: str = "out",
    *,
    states: dict[str, Path] | None = None,
    base: Path | None = None,
    version: int = 0,
) -> tuple[AggregationResult, Tensor]:
    digest = digest_file(base or bench.base)
    inputs: list[UpdateInput] = []
    for i, vector in enumerate(updates):
        contexts = links.contexts(spec, bench.layout, base_digest=digest, round=1, peer_id=f"p{i}")
        path = bench.update(f"u{i}", vector, spec.compression.up, contexts=contexts)
        against = UpdateBase(
            version=version, digest=digest, round=1, estimate=(states or {}).get(links.state_name(f"p{i}"))
        )
        inputs.append(
            UpdateInput(
                assignment_id=f"a{i}", peer_id=f"p{i}", path=path, examples=10 * (i + 1), base=against
            )
        )
    names = state_names(spec, inputs, cohort=len(inputs), base_version=version)
    job = AggregationJob(
        spec=spec,
        base=base or bench.base,
        updates=inputs,
        states=states or {},
        base_version=version,
        base_digest=digest,
        round=1,
        cohort=len(inputs),
        model_out=bench.folder / out,
        states_out={name: bench.folder / f"{out}.{name.replace('/', '.')}" for name in names},
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
    spec = make_spec(aggregation={"rule": "mean", "examples_max": 20})
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
        run(bench, make_spec(aggregation={"rule": "mean"}, server={"lr": 10.0}), huge)


@pytest.mark.parametrize("down", ["int8", "bf16", "topk:0.1"])
def test_a_compressed_step_is_what_the_peers_make_of_it(bench: Any, make_spec: MakeSpec, down: str) -> None:
    updates = vectors(bench, 3)
    spec = make_spec(compression={"down": down})
    result, moved = run(bench, spec, updates)
    delta = bench.folder / "out.down.delta"
    assert digest_file(delta) == result.state_digests[DELTA]
    assert delta.stat().st_size < bench.base.stat().st_size
    rebuilt = bench.folder / "rebuilt"
    assert rebuild(bench.base, [delta], rebuilt).digest == result.model_digest
    assert rebuilt.read_bytes() == (bench.folder / "out").read_bytes()
    # What the codec left behind waits for the next round: nothing of the step is lost.
    residual = torch.from_numpy(np.fromfile(bench.folder / "out.down.residual", dtype="<f4"))
    _, whole = run(bench, make_spec(), updates, out="whole")
    torch.testing.assert_close(moved + residual, whole, rtol=1e-4, atol=1e-5)
    assert float(residual.norm()) > 0


@pytest.mark.parametrize(
    ("up", "rule"),
    [
        ("identity", {"rule": "mean"}),
        ("randk:0.2", {"rule": "multi-krum", "pre": ["arc"], "faults": 1}),
        ("topk:0.1+int8|topk:0.3", {"rule": "caf", "pre": ["arc"], "faults": 1}),
    ],
)
def test_a_replayed_step_is_the_sum_that_the_rule_made(
    bench: Any, make_spec: MakeSpec, up: str, rule: dict[str, Any]
) -> None:
    updates = vectors(bench, 5)
    tables: dict[str, Any] = {"aggregation": rule, "server": {"lr": 0.5}}
    spec = make_spec(compression={"up": up, "down": "replay"}, **tables)
    check_spec(spec)
    result, moved = run(bench, spec, updates)
    delta, rebuilt = bench.folder / "out.down.delta", bench.folder / "rebuilt"
    assert set(result.state_digests) == {DELTA}
    assert rebuild(bench.base, [delta], rebuilt).digest == result.model_digest
    assert rebuilt.read_bytes() == (bench.folder / "out").read_bytes()
    whole, wanted = run(bench, make_spec(compression={"up": up}, **tables), updates, out="whole")
    torch.testing.assert_close(moved, wanted, rtol=1e-4, atol=1e-6)
    used = [f"u{i}" for i, treated in enumerate(whole.treatments) if treated.selected]
    assert delta.stat().st_size < 200 + sum((bench.folder / name).stat().st_size for name in used)


def test_a_step_of_too_many_updates_is_not_replayed(
    bench: Any, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "TERMS_MAX", 2)
    spec = make_spec(aggregation={"rule": "mean"}, compression={"down": "replay"})
    run(bench, spec, vectors(bench, 2))
    with pytest.raises(AggregationRefused, match="more than 2 updates is not replayed"):
        run(bench, spec, vectors(bench, 3))


@pytest.mark.parametrize(
    ("tables", "why"),
    [
        ({"aggregation": {"rule": "trimmed-mean", "faults": 0.2}}, "trimmed-mean judges each coordinate"),
        ({"aggregation": {"rule": "centered-clipping", "faults": 0}}, "keeps vectors of its own"),
        ({"server": {"optimizer": "adam"}}, "adam makes more of it"),
        ({"round": {"peers_min": 4097}}, "of 4096 at most"),
        ({"compression": {"down": "replay", "up": "int8", "feedback": "ef21"}}, "ef21 sends differences"),
    ],
)
def test_a_step_that_is_no_sum_of_updates_is_not_replayed(
    make_spec: MakeSpec, tables: dict[str, Any], why: str
) -> None:
    spec = {"aggregation": {"rule": "mean"}, "compression": {"down": "replay"}, **tables}
    with pytest.raises(ConfigError, match=why):
        check_spec(make_spec(**spec))


def test_the_way_down_of_one_bit_adam_is_one_bit_times_a_scale(bench: Any, make_spec: MakeSpec) -> None:
    """Version 1 is made in the warm-up and goes down whole; those after it as signs, against what stays as it is."""
    spec = make_spec(
        aggregation={"rule": "mean", "weights": "uniform"},
        server={"optimizer": "onebit-adam", "lr": 0.1, "tau": 1e-6},
        compression={"up": "identity", "feedback": "momentum:0.9", "warm_up_rounds": 1, "down": "sign"},
    )
    updates = vectors(bench, 3)
    for update in updates:
        update[::7] = 0.0  # never moves: one bit cannot say 0
    base, states, deltas, made, digests = bench.base, {}, [], "", []
    for version in range(4):
        out = f"version{version + 1}"
        result, _ = run(bench, spec, updates, out=out, states=states, base=base, version=version)
        made, base = result.model_digest, bench.folder / out
        states = {name: bench.folder / f"{out}.{name.replace('/', '.')}" for name in result.state_digests}
        deltas.append(states.pop(DELTA))
        digests.append(result.state_digests.get(SCALE))
    assert digests[1] == digests[2] == digests[3]
    assert digests[1]
    assert digests[0] is None  # nobody is told of a scale before there is one
    assert deltas[0].stat().st_size >= 4 * bench.layout.size
    assert deltas[1].stat().st_size < bench.layout.size / 6
    rebuilt = bench.folder / "rebuilt"
    assert rebuild(bench.folder / "version1", deltas[1:], rebuilt, states[SCALE]).digest == made
    with pytest.raises(TransferError, match="goes with a scale"):
        rebuild(bench.folder / "version1", deltas[1:], bench.folder / "again")
    begins, ends = ModelFile(bench.folder / "version1"), ModelFile(rebuilt)
    moved = ends.vector - begins.vector
    assert not bool(moved[::7].any())
    assert bool(moved.isfinite().all())
    residual, drift, scale = (
        torch.from_numpy(np.fromfile(states[name], dtype="<f4")) for name in ("down/residual", DRIFT, SCALE)
    )
    assert not residual[::7].any()
    assert not drift[::7].any()
    # What went down and what waits are together all that there was to be sent: three times the mean, and after the
    # first and the second what senders would have had more, had they gone on from what went down.
    alive = scale > 0
    mean, sent = torch.stack(updates).mean(0)[alive], moved[alive] / scale[alive]
    last = mean + drift[alive] / 0.9
    whole = 3 * mean + 0.9 * (sent - last - 2 * mean)
    torch.testing.assert_close(sent + residual[alive], whole, rtol=1e-3, atol=1e-3)
    begins.close()
    ends.close()


def test_deltas_of_several_rounds_follow_each_other(bench: Any, make_spec: MakeSpec) -> None:
    spec = make_spec(compression={"down": "topk:0.2"})
    base, states, deltas, made = bench.base, {}, [], ""
    for number in range(3):
        out = f"round{number}"
        result, _ = run(bench, spec, vectors(bench, 3), out=out, states=states, base=base)
        made = result.model_digest
        base = bench.folder / out
        states = {"down/residual": bench.folder / f"{out}.down.residual"}
        deltas.append(bench.folder / f"{out}.down.delta")
    assert rebuild(bench.base, deltas, bench.folder / "followed").digest == made
    other = bench.folder / "other"
    reader = PayloadReader(deltas[0])
    writer = PayloadWriter(other, replace(reader.manifest, layout_digest="0" * 64))
    for index in range(bench.layout.chunk_count):
        writer.append("params", bytes(reader.chunk("params", index)))
    writer.finish()
    with pytest.raises(TransferError, match="another model"):
        rebuild(bench.base, [other], bench.folder / "wrong")


@pytest.mark.parametrize("rule", ["foolsgold", "centered-clipping"])
def test_a_peer_that_sends_the_longest_update_there_is_stops_no_later_round(
    bench: Any, make_spec: MakeSpec, rule: str
) -> None:
    options = {"tau": 1e30} if rule == "centered-clipping" else {}
    spec = make_spec(aggregation={"rule": rule, "faults": 0, "options": options})
    states: dict[str, Path] = {}
    for number in range(4):
        updates = vectors(bench, 1 if rule == "centered-clipping" else 3)
        updates[-1].zero_()[0] = 1.8e19  # its square is finite, and that of twice as much is not
        out = f"round{number}"
        result, moved = run(bench, spec, updates, out=out, states=states)
        assert bool(moved.isfinite().all())
        states = {name: bench.folder / f"{out}.{name.replace('/', '.')}" for name in result.state_digests}


def test_a_rule_draws_from_what_nobody_knew_before(bench: Any, make_spec: MakeSpec) -> None:
    """Six updates in buckets of two: who is with whom follows from all updates, not from what a peer is told."""
    spec = make_spec(aggregation={"rule": "median", "pre": ["bucketing:2"], "faults": 0})
    updates = vectors(bench, 6)
    partners: set[tuple[float, ...]] = set()
    for change in range(4):
        updates[5][0] = float(change)  # far too little to matter to a median of the others
        first, again = run(bench, spec, updates), run(bench, spec, updates)
        assert torch.equal(first[1], again[1])
        partners.add(tuple(first[1][1000:1100].tolist()))
    assert len(partners) > 1
