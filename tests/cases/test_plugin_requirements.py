"""What a plug-in of somebody else's package demands of the rest of a run spec."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from compressors import Codec
from compressors.core.codec import PlainCodec
from coordinator.engine.sampling import Uniform
from coordinator.submission.checks import check_spec
from exchange.optimizers import ServerOptimizer
from methods import Requirement, SpecValues, demand, kinds, registry
from muster.errors import ConfigError
from muster.spec.load import parse_spec
from muster.spec.model import RunSpec
from tests.fake_plugins import PlugIn

ROOT = Path(__file__).parents[2]
GOOD = 'task = "examples.digits:Digits"\nrounds = 3\n'


class Half(PlainCodec):
    """Somebody's codec, which goes with one sampler and no feedback."""

    unbiased = True
    contractive = False
    linear = False
    spelling = "half"

    def requires(self, spec: SpecValues) -> Iterator[Requirement]:
        yield from demand(
            spec, "half wants the sampler steady: sampling.policy steady", {"sampling.policy": "steady"}
        )
        yield from demand(spec, "half wants train.steps 2", {"train.steps": 2, "train.epochs": None})

    def omega(self, size: int) -> float:
        return 1.0

    def bytes_max(self, size: int) -> int:
        return 4 * size

    def encode_host(self, x: Any, seed: int) -> bytes:
        raise NotImplementedError

    def decode_host(self, body: Any, out: Any) -> None:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Steady(Uniform):
    """Somebody's sampler, which wants to be told how many peers there are."""

    def requires(self, spec: SpecValues) -> Iterator[Requirement]:
        if spec["round"]["peers_min"] < 2:
            yield Requirement("steady needs 2 peers", {"round.peers_min": 2}, key="round.peers_min")


@dataclass(frozen=True, kw_only=True)
class Asynchronous:
    """Somebody's schedule, which bears no peer that every round needs."""

    spec: RunSpec
    refuse: Any
    concurrency: int = 2

    def requires(self, spec: SpecValues) -> Iterator[Requirement]:
        if spec["evaluate"]["every"] < self.concurrency:
            yield Requirement(
                f"asynchronous commits a version an update: evaluate.every {self.concurrency} or more",
                {"evaluate.every": self.concurrency},
            )

    def next(self, *_: Any) -> list[Any]:
        return []


@dataclass(frozen=True, kw_only=True)
class Frozen(ServerOptimizer):
    """Somebody's optimizer, which moves nothing and demands nothing."""

    def step(self, base: Any, delta: Any, state: Any, out: Any) -> None:
        out.copy_(base)


@pytest.fixture(autouse=True)
def plugged_in(plug_in: PlugIn) -> None:
    plug_in(kinds.CODECS, "half", Half)
    plug_in(kinds.SAMPLERS, "steady", Steady)
    plug_in(kinds.SERVER_OPTIMIZERS, "frozen", Frozen)
    plug_in(kinds.SCHEDULES, "asynchronous", Asynchronous)


def refusal(tables: str) -> ConfigError:
    text = GOOD + tables
    with pytest.raises(ConfigError) as caught:
        check_spec(parse_spec(text, "run.toml"), text, "run.toml")
    assert caught.value.id == "spec.invalid"
    return caught.value


def test_its_sentence_is_told_and_all_that_it_demands_is_set() -> None:
    error = refusal("[compression]\nup = 'half'\n[round]\npeers_min = 3\n")
    assert "half wants the sampler steady: sampling.policy steady" in error.message
    first, *_ = error.fix.split(", or ")
    assert first == 'set sampling.policy = "steady" and set train.steps = 2'


def test_a_part_of_a_composition_demands_as_much() -> None:
    assert (
        "half wants train.steps 2"
        in refusal(
            "[compression]\nup = 'int8|half'\n[sampling]\npolicy = 'steady'\n[round]\npeers_min = 3\n"
        ).message
    )


def test_a_demand_for_one_key_has_its_line() -> None:
    error = refusal("[sampling]\npolicy = 'steady'\n[round]\npeers_min = 1\n")
    assert error.message.endswith("run.toml:6: round.peers_min: steady needs 2 peers")
    assert error.fix.split(", or ")[0] == "set round.peers_min = 2"


def test_a_schedule_demands_with_the_options_that_it_was_given() -> None:
    error = refusal("[schedule]\nname = 'asynchronous'\n[schedule.options]\nconcurrency = 3\n")
    assert "asynchronous commits a version an update: evaluate.every 3 or more" in error.message
    assert error.fix.split(", or ")[0] == "set evaluate.every = 3"


def test_what_all_demands_are_met_by_is_accepted() -> None:
    check_spec(
        parse_spec(
            GOOD + "[compression]\nup = 'half'\n[train]\nsteps = 2\n[sampling]\npolicy = 'steady'\n"
            "[round]\npeers_min = 2\n[server]\noptimizer = 'frozen'\n",
            "run.toml",
        )
    )


def test_an_optimizer_of_which_nothing_is_known_is_taken_for_one_with_a_momentum() -> None:
    spec = RunSpec.model_validate(
        {
            "task": "a:B",
            "rounds": 3,
            "server": {"optimizer": "frozen"},
            "compression": {"up": "topk:0.01", "feedback": "dgc:0.9"},
        }
    )
    with pytest.raises(ConfigError, match="frozen at the server would be a second one"):
        check_spec(spec)


def test_who_checks_a_spec_knows_no_method_by_its_name() -> None:
    """No string of these files is a method's name, or one spelled with an argument; sentences are none."""
    known = {name for group in kinds.KINDS for name in registry.names(group)}
    files = [*(ROOT / "coordinator" / "submission").glob("*.py"), ROOT / "exchange" / "recipe.py"]
    files += [ROOT / "muster" / "spec" / name for name in ("relations.py", "options.py", "load.py")]
    files += [ROOT / "muster" / "task" / "trial.py", ROOT / "exchange" / "downlink.py"]
    files += [ROOT / "methods" / name for name in ("options.py", "registry.py", "requirements.py")]
    texts = [
        (file.name, node.value)
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value
    ]
    assert len(texts) > 100
    assert [each for each in texts if each[1].partition(":")[0] in known] == []


def test_a_codec_has_a_place_to_say_it() -> None:
    assert list(Codec.requires(Half(), {})) == []
