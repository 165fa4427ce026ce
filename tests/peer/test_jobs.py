"""The worker's jobs: what an update holds, that the same order gives the same bytes, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import compressors
from exchange.payload import PayloadReader
from muster.errors import ConfigError, MusterError, StorageError, TaskError, TransferError
from muster.model.modelfile import ModelFile, ModelWriter, layout_of, load_into, read_state
from muster.spec.model import RunSpec
from muster.task.loading import load_task
from peer.work import jobs
from peer.work.orders import Evaluated, EvaluateOrder, Trained, TrainOrder

Train = Callable[..., Trained]
Initial = Callable[..., tuple[Path, str, str]]


def told(share: float) -> None:
    assert 0.0 <= share <= 1.0


@pytest.fixture
def order(tmp_path: Path, toy_folder: Path, initial_model: Initial) -> Callable[..., TrainOrder]:
    """A training order for `Toy`, with parts of the run spec and of the order changed at will."""
    numbers = itertools.count()

    def make(*, spec: dict[str, Any] | None = None, model: Path | None = None, **changes: Any) -> TrainOrder:
        run = RunSpec.model_validate({"task": "toy_task:Toy", "rounds": 1, **(spec or {})})
        stem = tmp_path / f"attempt-{next(numbers)}"
        values: dict[str, Any] = {
            "task": run.task,
            "task_folders": (str(toy_folder),),
            "options": run.task_options,
            "site_name": "ada",
            "site_data": {},
            "site_seed": run.seed,
            "device": "cpu",
            "base": str(model or initial_model(**run.task_options)[0]),
            "seed": 11,
            "assignment_id": "r.1.ada.1",
            "run_id": "r",
            "round": 1,
            "base_version": 0,
            "base_digest": "ba5e",
            "train": run.train.model_dump(mode="json"),
            "codec": run.compression.up,
            "feedback": run.compression.feedback,
            "counted_round": 0,
            "update": f"{stem}.update",
            "state": {},
            "staged": f"{stem}.state",
        }
        return TrainOrder(**{**values, **changes})

    return make


def train(order: TrainOrder) -> Trained:
    return Trained(**jobs.train(asdict(order), told))


def decoded(order: TrainOrder) -> Tensor:
    reader = PayloadReader(Path(order.update))
    group = reader.manifest.groups[0]
    out = torch.empty(group.size)
    codec = compressors.build(group.codec)
    for index in range(group.chunk_count):
        codec.decode(reader.chunk("params", index), out[index << 18 : (index + 1) << 18])
    reader.close()
    return out


def test_the_update_is_what_training_changed(order: Callable[..., TrainOrder], toy_folder: Path) -> None:
    ordered = order()
    trained = train(ordered)
    base = ModelFile(Path(ordered.base))
    model = load_task("toy_task:Toy", [toy_folder], {}).model()
    load_into(model, base)
    _reference_epoch(model, toy_folder, seed=11)
    wanted = torch.empty(base.layout.size)
    read_state(model).read(0, wanted)
    wanted -= base.vector
    assert torch.allclose(decoded(ordered), wanted, rtol=0.0, atol=1e-7)
    assert float(wanted.norm()) > 0.1
    reader = PayloadReader(Path(ordered.update))
    manifest = reader.manifest
    assert (manifest.run_id, manifest.round, manifest.assignment_id) == ("r", 1, "r.1.ada.1")
    assert (manifest.base_digest, manifest.layout_digest) == ("ba5e", base.layout.digest)
    assert manifest.scalars["examples"] == trained.examples == 41
    assert manifest.scalars["steps"] == trained.steps == 2
    assert manifest.scalars["metric/loss"] == pytest.approx(trained.metrics["loss"])
    assert trained.size_bytes == Path(ordered.update).stat().st_size
    reader.close()
    base.close()


def _reference_epoch(model: nn.Module, folder: Path, seed: int) -> None:
    """One epoch of plain SGD written out: batches of 32 and of the 9 that are left."""
    from muster.seeds import derive_seed
    from muster.task.task import Site

    task = load_task("toy_task:Toy", [folder], {})
    inputs, targets = task.train_data(Site(name="ada")).tensors  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(derive_seed(seed, "batches"))
    permutation = torch.randperm(41, generator=generator)
    torch.manual_seed(seed)
    model.train()
    for indices in (permutation[:32], permutation[32:]):
        loss = nn.functional.cross_entropy(model(inputs[indices]), targets[indices])
        model.zero_grad()
        torch.autograd.backward(loss)
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.sub_(parameter.grad, alpha=0.05)


@pytest.mark.parametrize(
    "train_table",
    [
        {"epochs": 2, "momentum": 0.9, "weight_decay": 0.01},
        {"optimizer": "adamw", "lr": 0.01, "clip_norm": 0.5},
        {"steps": 5, "batch_size": 8, "precision": "bfloat16"},
        {"worker_momentum": 0.9},
    ],
    ids=["sgd", "adamw", "bfloat16", "worker-momentum"],
)
def test_the_same_order_gives_the_same_bytes(
    order: Callable[..., TrainOrder], train_table: dict[str, Any]
) -> None:
    spec = {"train": train_table, "compression": {"up": "topk:0.25", "feedback": "ef14"}}
    first = order(spec=spec)
    trained = train(first)
    torch.manual_seed(999)
    train(order(spec=spec, seed=12))  # something else in between, in the same process
    jobs._places.clear()
    again = order(spec=spec, base=first.base)
    assert train(again).digest == trained.digest
    assert Path(first.update).read_bytes() == Path(again.update).read_bytes()
    for number in range(len(trained.staged)):
        assert Path(f"{first.staged}.{number}").read_bytes() == Path(f"{again.staged}.{number}").read_bytes()
    other = order(spec=spec, base=first.base, seed=12)
    assert train(other).digest != trained.digest


def test_a_last_batch_of_one_joins_the_batch_before(order: Callable[..., TrainOrder]) -> None:
    # 33 examples in batches of 32; batch normalisation would refuse the one that is left.
    assert train(order(site_data={"count": 33})).steps == 1


def test_steps_instead_of_epochs(order: Callable[..., TrainOrder]) -> None:
    assert train(order(spec={"train": {"steps": 7, "batch_size": 16}})).steps == 7


def test_error_feedback_keeps_what_the_codec_leaves(order: Callable[..., TrainOrder]) -> None:
    spec = {"compression": {"up": "topk:0.25", "feedback": "ef14"}}
    first = order(spec=spec)
    trained = train(first)
    plain = order(base=first.base)
    train(plain)
    residual = _floats(trained.staged["residual"])
    assert torch.allclose(decoded(first) + residual, decoded(plain), atol=1e-6)
    second = order(spec=spec, base=first.base, state={"residual": trained.staged["residual"]})
    left = _floats(train(second).staged["residual"])
    assert torch.allclose(decoded(second) + left, decoded(plain) + residual, atol=1e-6)
    assert torch.equal(_floats(trained.staged["residual"]), residual)  # the present file is only read


def test_worker_momentum_starts_as_the_delta_and_then_folds(order: Callable[..., TrainOrder]) -> None:
    plain = order()
    train(plain)
    delta = decoded(plain)
    spec = {"train": {"worker_momentum": 0.75}}
    first = order(spec=spec, base=plain.base)
    staged = train(first).staged
    assert torch.equal(decoded(first), delta)
    momentum = _floats(staged["momentum"])
    assert torch.equal(momentum, delta)
    second = order(spec=spec, base=plain.base, seed=12, state=staged)
    other = order(base=plain.base, seed=12)
    train(other)
    staged = train(second).staged
    assert torch.allclose(decoded(second), 0.25 * decoded(other) + 0.75 * delta, atol=1e-7)
    assert torch.equal(_floats(staged["momentum"]), decoded(second))


def _floats(path: str) -> Tensor:
    return torch.frombuffer(bytearray(Path(path).read_bytes()), dtype=torch.float32)


def test_a_sign_flip_drill_sends_the_opposite(order: Callable[..., TrainOrder]) -> None:
    honest = order()
    train(honest)
    lying = order(base=honest.base, attack={"name": "sign-flip", "options": {"scale": 10.0}})
    train(lying)
    assert torch.equal(decoded(lying), -10.0 * decoded(honest))


def test_a_label_flip_drill_trains_on_false_labels(order: Callable[..., TrainOrder]) -> None:
    honest, lying = order(), order(attack={"name": "label-flip"})
    train(honest)
    train(lying)
    assert not torch.equal(decoded(lying), decoded(honest))
    train(again := order(base=honest.base))
    assert torch.equal(decoded(again), decoded(honest))  # the kept data were not poisoned


def test_a_nan_drill_is_let_out(order: Callable[..., TrainOrder]) -> None:
    train(lying := order(attack={"name": "nan"}))
    assert bool(torch.isnan(decoded(lying)).all())


ROBUST = {"aggregation": {"rule": "trimmed-mean", "pre": ["arc", "nnm"], "faults": 2}}


@pytest.fixture
def drilled(order: Callable[..., TrainOrder]) -> Callable[..., TrainOrder]:
    """An order with a drill, as `train_order` makes it."""

    def make(name: str, spec: dict[str, Any] | None = None, base: str = "", **options: Any) -> TrainOrder:
        table = RunSpec.model_validate({"task": "a:B", "rounds": 1, **(spec or {})}).aggregation
        changes = {"base": base} if base else {}
        return order(
            spec=spec,
            attack={"name": name, "options": options},
            aggregation=table.model_dump(mode="json"),
            **changes,
        )

    return make


def test_a_backdoor_drill_trains_on_marked_data(
    order: Callable[..., TrainOrder], drilled: Callable[..., TrainOrder]
) -> None:
    train(honest := order())
    train(once := drilled("backdoor", base=honest.base, target=1, patch=1))
    train(twice := drilled("backdoor", base=honest.base, target=1, patch=1, boost=2.0))
    assert not torch.allclose(decoded(once), decoded(honest), atol=1e-4)
    assert torch.allclose(decoded(twice), 2 * decoded(once))


def test_a_lone_drill_sees_several_honest_updates_of_its_own(
    order: Callable[..., TrainOrder], drilled: Callable[..., TrainOrder]
) -> None:
    train(honest := order())
    seen = []
    for worker in range(4):
        train(mimic := drilled("mimic", base=honest.base, worker=worker, views=4))
        seen.append(decoded(mimic))
    assert torch.equal(seen[0], decoded(honest))  # the real one first, then trained on bootstraps
    rows = torch.stack(seen)
    assert float(torch.pdist(rows).min()) > 1e-3
    assert float((rows - rows.mean(dim=0)).norm(dim=1).max()) < float(
        rows[0].norm()
    )  # plausible all the same
    train(alie := drilled("alie", base=honest.base, z=2.0))
    assert torch.allclose(decoded(alie), rows.mean(dim=0) + 2.0 * rows.std(dim=0), atol=1e-6)
    assert not list(Path(alie.update).parent.glob("*.view*"))


def test_each_view_keeps_its_own_momentum(drilled: Callable[..., TrainOrder]) -> None:
    train(plain := drilled("mimic", worker=2, views=3))
    delta = decoded(plain)
    spec = {"train": {"worker_momentum": 0.75}}
    first = drilled("mimic", spec=spec, base=plain.base, worker=2, views=3)
    staged = train(first).staged
    assert sorted(staged) == ["momentum", "momentum-1", "momentum-2"]
    assert torch.equal(decoded(first), delta)
    second = drilled("mimic", spec=spec, base=plain.base, worker=2, views=3)
    second = replace(second, state=staged)
    train(second)
    assert torch.allclose(decoded(second), delta, atol=1e-7)  # 0.25 of the same and 0.75 of the same
    third = replace(drilled("mimic", spec=spec, base=plain.base, worker=2, views=3), state=staged, seed=12)
    train(third)
    other = replace(drilled("mimic", base=plain.base, worker=2, views=3), seed=12)
    train(other)
    assert torch.allclose(decoded(third), 0.25 * decoded(other) + 0.75 * delta, atol=1e-7)


def test_a_drill_knows_the_runs_rule(drilled: Callable[..., TrainOrder]) -> None:
    train(against_mean := drilled("optimal-alie", spec={"aggregation": {"rule": "mean"}}))
    train(against_robust := drilled("optimal-alie", spec=ROBUST, base=against_mean.base))
    train(again := drilled("optimal-alie", spec=ROBUST, base=against_mean.base))
    wild, tame = decoded(against_mean), decoded(against_robust)
    assert bool(tame.isfinite().all())
    assert 0 < float(tame.norm()) < float(wild.norm())
    assert Path(again.update).read_bytes() == Path(against_robust.update).read_bytes()


@pytest.mark.parametrize(
    ("attack", "word"),
    [
        ({"name": "sign-flop"}, "sign-flip"),
        ({"name": "sign-flip", "options": {"scale": -1.0}}, "scale"),
        ({"name": "alie", "options": {"views": 0}}, "views must be an integer from 1 to 32"),
        ({"name": "alie", "options": {"views": 1}}, "it sees 1 updates of this peer's own"),
        ({"name": "backdoor", "options": {"target": 5}}, "target 5 is no class"),
    ],
)
def test_a_drill_that_makes_no_sense(
    order: Callable[..., TrainOrder], attack: dict[str, Any], word: str
) -> None:
    with pytest.raises(ConfigError, match=word) as caught:
        train(order(attack=attack))
    assert caught.value.id == "drill.invalid"


def test_training_that_diverges_is_told(order: Callable[..., TrainOrder]) -> None:
    with pytest.raises(TaskError) as caught:
        train(order(site_data={"scale": float("inf")}))
    assert caught.value.id == "task.not_finite"


@pytest.mark.parametrize("feedback", ["none", "ef14"])
@pytest.mark.parametrize("up", ["int8", "sign", "topk:0.5+int4", "powersgd:1", "int8|sign"])
def test_values_that_no_codec_carries_are_told(
    order: Callable[..., TrainOrder], tmp_path: Path, up: str, feedback: str
) -> None:
    (tmp_path / "mischief").write_text("huge")
    compression = {"up": up, "feedback": feedback}
    with pytest.raises(TaskError, match="too large for the codec") as caught:
        train(order(spec={"compression": compression}, site_data={"mischief": str(tmp_path / "mischief")}))
    assert caught.value.id == "task.too_large"
    assert f"codec {up}" in str(caught.value)
    dense = order(site_data={"mischief": str(tmp_path / "mischief")})
    train(dense)
    assert float(decoded(dense).max()) == pytest.approx(1e38)


def test_a_training_loop_of_the_tasks_own(order: Callable[..., TrainOrder], tmp_path: Path) -> None:
    (tmp_path / "mischief").write_text("own")
    ordered = order(site_data={"mischief": str(tmp_path / "mischief")})
    trained = train(ordered)
    assert (trained.examples, trained.steps, trained.metrics) == (5, 1, {"own": 2.0})
    delta = decoded(ordered)
    assert torch.allclose(delta[delta != 0], torch.ones(()))


def test_a_report_that_is_none(order: Callable[..., TrainOrder], tmp_path: Path) -> None:
    (tmp_path / "mischief").write_text("bad report")
    with pytest.raises(TaskError) as caught:
        train(order(site_data={"mischief": str(tmp_path / "mischief")}))
    assert caught.value.id == "task.bad_report"


def test_masha_compares_gradients_of_all_examples_alone(order: Callable[..., TrainOrder]) -> None:
    def spec(batch_size: int, feedback: str = "masha:0.9") -> dict[str, Any]:
        table = {"up": "topk:0.5", "feedback": feedback}
        return {"train": {"steps": 1, "lr": 1.0, "batch_size": batch_size}, "compression": table}

    for whole in (10, 1_000_000):
        assert train(order(spec=spec(whole), site_data={"count": 10})).steps == 1
    assert train(order(spec=spec(9, "none"), site_data={"count": 10})).steps == 1
    with pytest.raises(ConfigError, match="10 examples, and the run takes 9") as caught:
        train(order(spec=spec(9), site_data={"count": 10}))
    assert caught.value.id == "train.batch_not_whole"
    assert "batch_size to 10" in caught.value.fix


@pytest.mark.parametrize(
    ("changes", "kind", "error_id"),
    [
        ({"site_data": {"count": 0}}, ConfigError, "task.no_data"),
        ({"task": "toy_task:Toi"}, ConfigError, "task.not_found"),
        ({"options": {"width": 5}}, TransferError, "model.layout_mismatch"),
        ({"state": {"residual": "gone"}, "feedback": "ef14"}, StorageError, "state.malformed"),
    ],
)
def test_what_cannot_be_trained(
    order: Callable[..., TrainOrder], changes: dict[str, Any], kind: type[MusterError], error_id: str
) -> None:
    with pytest.raises(kind) as caught:
        train(order(**changes))
    assert caught.value.id == error_id


@pytest.mark.parametrize(
    "lacking",
    [{"mechanism": {"name": "elsewhere", "options": {}}}, {"spec": {"train": {"algorithm": "elsewhere"}}}],
)
def test_a_plug_in_that_is_not_installed_is_told_before_training(
    order: Callable[..., TrainOrder], monkeypatch: pytest.MonkeyPatch, lacking: dict[str, Any]
) -> None:
    def fail(*_args: Any, **_named: Any) -> None:
        pytest.fail("it has trained")

    monkeypatch.setattr(jobs, "_fit", fail)
    with pytest.raises(ConfigError) as caught:
        train(order(**lacking))
    assert caught.value.id == "plugin.unknown"


def test_an_unknown_algorithm_option_is_told(order: Callable[..., TrainOrder]) -> None:
    with pytest.raises(ConfigError) as caught:
        train(order(spec={"train": {"options": {"speed": 3}}}))
    assert caught.value.id == "train.bad_options"


def test_narrow_parameters_that_do_not_move_send_nothing(
    order: Callable[..., TrainOrder], tmp_path: Path
) -> None:
    """The float32 base keeps digits that a bfloat16 model never had; they are not the peer's doing."""
    (tmp_path / "narrow_task.py").write_text(
        "import torch, muster\n"
        "class Narrow(muster.Task):\n"
        "    def model(self): return torch.nn.Linear(300, 40).bfloat16()\n"
        "    def train_data(self, site): return []\n"
        "    def fit(self, model, context): return muster.FitReport(examples=1, steps=0)\n"
    )
    wide = nn.Linear(300, 40)
    narrow = load_task("narrow_task:Narrow", [tmp_path]).model()
    layout = layout_of(narrow)
    path = tmp_path / "narrow.safetensors"
    chunk = torch.cat([wide.weight.detach().reshape(-1), wide.bias.detach()])
    writer = ModelWriter(path, layout, {})
    writer.write_chunk(0, chunk)
    writer.finish()
    ordered = order(task="narrow_task:Narrow", task_folders=(str(tmp_path),), model=path)
    train(ordered)
    assert torch.count_nonzero(decoded(ordered)) == 0


def test_many_chunks_make_the_same_update_as_one_vector(
    order: Callable[..., TrainOrder], tmp_path: Path
) -> None:
    spec = {"task_options": {"width": 1 << 17}, "train": {"steps": 1, "worker_momentum": 0.5}}
    ordered = order(spec=spec)
    trained = train(ordered)
    reader = PayloadReader(Path(ordered.update))
    assert [group.chunk_count for group in reader.manifest.groups] == [5, 1, 1]
    reader.close()
    assert torch.equal(decoded(ordered), _floats(trained.staged["momentum"]))


def test_a_planned_update_is_smaller_at_no_more_error(order: Callable[..., TrainOrder]) -> None:
    """Through a feedback and over several chunks; the plan is made of what is really sent."""

    def spec(up: str) -> dict[str, Any]:
        compression = {"up": up, "feedback": "ef14"}
        return {"task_options": {"width": 1 << 17}, "train": {"steps": 1}, "compression": compression}

    uniform = order(spec=spec("topk:0.1"))
    trained = train(uniform)
    planned = order(spec=spec("topk:0.1|topk:0.03|topk:0.5"), base=uniform.base)
    smaller = train(planned)
    assert smaller.size_bytes < 0.99 * trained.size_bytes
    left = [float(_floats(each.staged["residual"]).double().square().sum()) for each in (trained, smaller)]
    # The budget is what one codec for each layer leaves; of a chunk as a whole it picks a trifle better.
    assert left[1] <= left[0] * (1 + 1e-5)
    again = order(spec=spec("topk:0.1|topk:0.03|topk:0.5"), base=uniform.base)
    assert train(again).digest == smaller.digest


def test_evaluation_gives_metrics_and_their_weight(
    order: Callable[..., TrainOrder], toy_folder: Path
) -> None:
    values = asdict(order())
    wanted = EvaluateOrder(**{key: values[key] for key in EvaluateOrder.__dataclass_fields__})
    found = Evaluated(**jobs.evaluate(asdict(wanted), told))
    assert found.examples == 41
    assert set(found.metrics) == {"loss", "accuracy"}
    again = Evaluated(**jobs.evaluate(asdict(wanted), told))
    assert again == found


@pytest.mark.parametrize(("limit", "kept"), [(0, 1), (500, 2), (1 << 20, 4)])
def test_modules_of_sites_that_share_a_process_stay_while_they_are_small(
    order: Callable[..., TrainOrder],
    initial_model: Initial,
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
    kept: int,
) -> None:
    monkeypatch.setattr(jobs, "_places_max", 4)
    monkeypatch.setattr(jobs, "MODULES_BYTES_MAX", limit)
    jobs._places.clear()
    for width in range(4, 4 + jobs._places_max + 2):
        train(order(spec={"task_options": {"width": width}}))
    assert len(jobs._places) == jobs._places_max
    assert [place.model is not None for place in jobs._places.values()] == [False] * (4 - kept) + [
        True
    ] * kept


def test_source_code_that_the_run_does_not_want_is_refused_before_anything_is_loaded(
    order: Callable[..., TrainOrder],
) -> None:
    with pytest.raises(ConfigError) as caught:
        train(order(run_id="strict", source_digest="1" * 64))
    assert caught.value.id == "task.other_sources"
    assert "111111111111 there" in caught.value.cause
    ordered = order(run_id="lenient")
    train(ordered)
    reader = PayloadReader(Path(ordered.update))
    own = reader.manifest.source_digest
    reader.close()
    train(order(run_id="strict", source_digest=own))


def test_a_job_computes_on_as_many_threads_as_it_is_told(order: Callable[..., TrainOrder]) -> None:
    before = torch.get_num_threads()
    try:
        train(order(threads=before + 1))
        assert torch.get_num_threads() == before + 1
        train(order())  # says nothing
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_describe_names_a_device() -> None:
    assert jobs.describe({}, told)["devices"]
