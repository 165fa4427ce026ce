"""Options of plug-ins of every kind, in the tables of a run spec and behind a colon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
import torch
from hypothesis import given, strategies

import compressors
from coordinator.engine import sampling
from coordinator.engine.sampling import Draw
from coordinator.submission.checks import cautions, check_spec
from exchange import optimizers, recipe
from exchange.optimizers import ServerOptimizer
from methods import MethodError, kinds, make, options_of, registry, spelling
from muster.errors import ConfigError
from muster.spec.load import parse_spec, spec_schema
from muster.spec.model import RunSpec
from tests.fake_plugins import PlugIn

GOOD = 'task = "examples.digits:Digits"\nrounds = 3\n'


@dataclass(frozen=True, kw_only=True)
class Recent:
    """Whoever took part last."""

    knobs: ClassVar = {"explore": "share of the cohort that is drawn at random, from 0 to 1"}

    count: int | None = None
    explore: float = 0.1
    order: Literal["newest", "oldest"] = "newest"

    def __post_init__(self) -> None:
        if not 0 <= self.explore <= 1:
            raise ValueError(f"explore lies from 0 to 1, not at {self.explore}")

    def needed(self, peers: int) -> int:
        return self.count or peers

    def sample(self, peers: Any, *_: Any, **__: Any) -> Draw:
        return Draw(cohort=tuple(peers), needed=len(peers))


@dataclass(frozen=True, kw_only=True)
class Buffered:
    """Closes after so many updates."""

    spec: RunSpec
    refuse: Any
    size: int

    def next(self, *_: Any) -> list[Any]:
        return []


@dataclass(frozen=True, kw_only=True)
class Lion(ServerOptimizer):
    """The sign of a momentum."""

    lr: float = 1.0
    decay: float = 0.0

    def step(self, base: Any, delta: Any, state: Any, out: Any) -> None:
        out.copy_(base * (1 - self.decay)).add_(delta.sign(), alpha=self.lr)


@pytest.fixture(autouse=True)
def plugged_in(plug_in: PlugIn) -> None:
    plug_in(kinds.SAMPLERS, "recent", Recent)
    plug_in(kinds.SCHEDULES, "buffered", Buffered)
    plug_in(kinds.SERVER_OPTIMIZERS, "lion", Lion)


def mistakes(tables: str) -> list[str]:
    text = GOOD + tables
    spec = parse_spec(text, "run.toml", load_methods=False)
    with pytest.raises(ConfigError) as caught:
        check_spec(spec, text, "run.toml")
    assert caught.value.id == "spec.invalid"
    return caught.value.message.split("\n")[1:]


def test_each_table_hands_its_options_to_the_plug_in_that_it_names() -> None:
    spec = parse_spec(
        GOOD + "[sampling]\npolicy = 'recent'\ncount = 3\n[sampling.options]\nexplore = 0.5\n"
        "[schedule]\nname = 'buffered'\n[schedule.options]\nsize = 4\n"
        "[server]\noptimizer = 'lion'\nlr = 0.25\n[server.options]\ndecay = 0.5\n",
        "run.toml",
    )
    assert sampling.build(spec.sampling) == Recent(count=3, explore=0.5)
    built = check_spec(spec)
    assert isinstance(built, Buffered) and (built.size, built.spec) == (4, spec)
    lion = optimizers.build(spec.server, version=7)
    assert lion == Lion(lr=0.25, decay=0.5, version=7)
    out = torch.empty(2)
    lion.step(torch.ones(2), torch.tensor([2.0, -3.0]), {}, out)
    assert out.tolist() == [0.75, 0.25]
    again = RunSpec.model_validate_json(spec.canonical_json())
    assert again == spec and again.digest == spec.digest


def test_all_wrong_options_are_told_at_once_with_their_lines_and_the_nearest() -> None:
    assert mistakes(
        "[train]\nalgorithm = 'spsa'\n[train.options]\nepz = 0.1\n"
        "[sampling]\npolicy = 'recent'\n[sampling.options]\nexplor = 0.5\norder = 'first'\ncount = 2\n"
        "[schedule]\nname = 'buffered'\n[schedule.options]\nsize = true\n"
        "[server]\noptimizer = 'lion'\n[server.options]\ndecay = 'much'\n"
        "[aggregation]\nrule = 'multi-krum'\nfaults = 0\n[aggregation.options]\nmm = 2\n"
    ) == [
        "run.toml:6: train.options.epz: spsa has no option 'epz' (did you mean 'eps'?)",
        "run.toml:10: sampling.options.explor: recent has no option 'explor' (did you mean 'explore'?)",
        "run.toml:11: sampling.options.order: should be 'newest' or 'oldest', but is 'first'",
        "run.toml:12: sampling.options.count: is a key of [sampling] itself: give it there",
        "run.toml:16: schedule.options.size: should be an integer, but is True",
        "run.toml:20: server.options.decay: should be a number, but is 'much'",
        "run.toml:25: aggregation.options.mm: multi-krum has no option 'mm' (did you mean 'm'?)",
    ]


def test_whoever_reads_a_spec_is_told_of_given_options_at_once_with_all_else() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_spec(
            GOOD + "[train]\nlr = 'fast'\n[sampling]\npolicy = 'recent'\n[sampling.options]\nexplor = 1\n"
            "[aggregation]\nrule = 'krum'\n",
            "run.toml",
        )
    lines = caught.value.message.split("\n")[1:]
    assert [line.split(": ")[:2] for line in lines] == [
        ["run.toml:4", "train.lr"],
        ["run.toml:8", "sampling.options.explor"],
        ["run.toml:9", "aggregation.faults"],
    ]


def test_a_needed_option_that_is_missing_is_told_where_it_belongs() -> None:
    (line,) = mistakes("[schedule]\nname = 'buffered'\n")
    assert line == "run.toml:3: schedule.options: buffered needs the option 'size'"


@pytest.mark.parametrize(
    ("tables", "line"),
    [
        ("[aggregation]\nrule = 'krum'\n", "3: aggregation.faults: is missing: krum must be told"),
        (
            "[aggregation]\nrule = 'median'\npre = ['nnm']\n",
            "3: aggregation.faults: is missing: nnm must be told",
        ),
        ("[aggregation]\nrule = 'bulyan'\n", "3: aggregation.faults: is missing: bulyan must be told"),
        (
            "[sampling]\npolicy = 'poisson'\nfraction = 0.5\nover_select = 1.5\n",
            "6: sampling.over_select: poisson sampling draws each peer by itself and cannot over-select",
        ),
        (
            "[sampling]\npolicy = 'poisson'\ncount = 3\n",
            "5: sampling.count: poisson sampling takes a fraction",
        ),
    ],
)
def test_what_a_method_needs_to_be_told_has_the_line_of_its_key(tables: str, line: str) -> None:
    (told,) = mistakes(tables)
    assert told.startswith(f"run.toml:{line}")


def test_a_rule_that_is_told_f_or_was_not_chosen_misses_nothing() -> None:
    for tables in ("", "[aggregation]\nfaults = 1\n", "[aggregation]\nrule = 'krum'\nfaults = 0\n"):
        text = GOOD + tables
        check_spec(parse_spec(text, "run.toml"), text)


def test_what_the_class_refuses_is_told_in_its_own_words_with_its_line() -> None:
    assert mistakes("[sampling]\npolicy = 'recent'\noptions = { explore = 7 }\n") == [
        "run.toml:5: sampling.options: recent refuses them: explore lies from 0 to 1, not at 7.0"
    ]


@pytest.mark.parametrize(
    ("tables", "keys"),
    [
        ("[sampling]\npolicy = 'recent'\nfraction = 0.5\nover_select = 2.0\n", ["fraction", "over_select"]),
        ("[sampling]\npolicy = 'recent'\ncount = 2\nover_select = 1.0\n", []),
        ("[server]\noptimizer = 'adam'\nmomentum = 0.3\n", ["momentum"]),
        ("[server]\noptimizer = 'momentum'\nmomentum = 0.3\nlr = 0.5\n", []),
    ],
)
def test_a_key_of_which_the_plug_in_knows_nothing_is_warned_of(tables: str, keys: list[str]) -> None:
    told = [
        (cause, said)
        for cause, said in cautions(parse_spec(GOOD + tables, "run.toml"))
        if "no option" in said
    ]
    assert [cause.partition(".")[2] for cause, _ in told] == keys
    assert all("leave it out, or set" in said for _, said in told)


def test_specs_without_options_have_the_digest_that_they_had() -> None:
    spec = RunSpec.model_validate({"task": "a:B", "rounds": 1})
    assert spec.digest == "4609433c5ef585a6f8a1ab9ceb3ad12d3015f9946d765245b09bab8a9d8e324a"
    table = RunSpec.model_validate({"task": "a:B", "rounds": 1, "schedule": {"name": "synchronous"}})
    assert table.digest == spec.digest


def test_a_spelled_plug_in_may_be_a_table_of_name_and_options() -> None:
    spec = parse_spec(
        GOOD + "[compression]\nfeedback = { name = 'dgc', options = { momentum = 0.5, nesterov = true } }\n"
        "[compression.up]\nname = 'topk'\n[compression.up.options]\nfraction = 0.25\n"
        "[aggregation]\nrule = 'median'\nfaults = 0\npre = [{ name = 'bucketing', options = { s = 3 } }, 'nnm']\n",
        "run.toml",
    )
    assert spec.compression.up == "topk:fraction=0.25"
    check_spec(spec)
    built = compressors.build(spec.compression.up)
    assert built.spelling == "topk:0.25"
    assert compressors.build_feedback(spec.compression.feedback).spelling == "dgc:0.5:nesterov"
    assert recipe.pipeline(spec, 5).pre[0].rows(7) == 3
    assert RunSpec.model_validate_json(spec.canonical_json()) == spec


def test_wrong_options_of_spelled_plug_ins_are_told_with_their_lines() -> None:
    assert mistakes(
        "[compression]\nup = { name = 'topk', options = { fracton = 0.5 } }\n"
        "down = 'topk:fraction=often+int8:stochastic=true'\nfeedback = 'dgc:momentum=0.5:clip=high'\n"
        "[aggregation]\nrule = 'median'\nfaults = 0\npre = ['nnm', 'bucketing:t=3']\n"
    ) == [
        "run.toml:4: compression.up: topk has no option 'fracton' (did you mean 'fraction'?)",
        "run.toml:5: compression.down: topk: fraction should be a number, but is 'often'",
        "run.toml:6: compression.feedback: dgc: clip should be a number, but is 'high'",
        "run.toml:10: aggregation.pre[1]: bucketing has no option 't' (known: s)",
    ]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("up = { nam = 'topk' }", "compression.up: should be a name, or a table of name and options"),
        ("up = { name = 'topkk' }", "there is no codec 'topkk' (did you mean 'topk'?)"),
        ("up = { name = 'topk', options = { fraction = 'a:b' } }", "cannot be spelled"),
    ],
)
def test_a_table_that_is_none_is_told(table: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_spec(GOOD + "[compression]\n" + table, "run.toml")
    assert said in caught.value.message


@pytest.mark.parametrize("group", [kinds.CODECS, kinds.FEEDBACKS])
def test_every_shipped_codec_and_feedback_is_made_of_its_options_as_of_its_spelling(group: str) -> None:
    build = compressors.build if group == kinds.CODECS else compressors.build_feedback
    for name in registry.names(group):
        plugin = registry.find(group, name)
        found = options_of(plugin, group)
        assert all(option.text for option in found), name
        made = build("int8:stochastic" if name == "int8" else plugin.example or name)
        values = {option.name: getattr(made, option.name, True) for option in found}
        assert make(plugin, name, values, group).spelling == made.spelling
        if values:
            assert build(spelling.spell(name, values)).spelling == made.spelling


@given(
    fraction=strategies.floats(min_value=1e-300, max_value=1.0),
    common=strategies.booleans(),
    unscaled=strategies.booleans(),
)
def test_what_is_spelled_by_name_is_read_again(fraction: float, common: bool, unscaled: bool) -> None:
    values = {"fraction": fraction, "common": common, "unscaled": unscaled}
    built = compressors.build(spelling.spell("randk", values))
    assert built.spelling == f"randk:{fraction!r}" + ":common" * common + ":unscaled" * unscaled


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"fraction": 2}, "above 0 and up to 1, not 2"),
        ({"fraction": "0.1"}, "topk: fraction should be a number, but is '0.1'"),
        ({}, "topk needs the option 'fraction'"),
        ({"fraction": 0.1, "k": 3}, "topk has no option 'k' (known: fraction)"),
    ],
)
def test_options_that_a_codec_refuses(values: dict[str, Any], said: str) -> None:
    plugin = registry.find(kinds.CODECS, "topk")
    with pytest.raises(MethodError) as caught:
        make(plugin, "topk", values, kinds.CODECS)
    assert said in str(caught.value)


def test_the_schema_has_the_options_of_each_plug_in() -> None:
    schema = spec_schema()
    conditions = schema["$defs"]["SamplingTable"]["allOf"]
    (recent,) = [each for each in conditions if each["if"]["properties"]["policy"]["const"] == "recent"]
    assert recent["then"]["properties"]["options"]["properties"] == {
        "explore": {
            "type": "number",
            "default": 0.1,
            "description": "share of the cohort that is drawn at random, from 0 to 1",
        },
        "order": {"enum": ["newest", "oldest"], "default": "newest"},
    }
    assert schema["properties"]["schedule"]["anyOf"][0] == {"type": "string"}
