"""What a coordinator says of a run spec: what it refuses and what to set instead, and what it only warns of."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from cli.demo import COMPRESSION
from coordinator.submission import suggestions as remedies
from coordinator.submission.checks import NO_REMEDY, check_spec, warnings
from muster.errors import ConfigError
from muster.spec.load import load_spec, parse_spec
from muster.spec.model import RunSpec
from protos.v1 import admin_pb2 as pb

ROOT = Path(__file__).parents[2]
CODECS = (
    "identity",
    "int8",
    "topk:0.01",
    "topk:0.01+int8",
    "sign",
    "terngrad",
    "ferret:64",
    "one-byte:4",
    "int8|sign",
)
FEEDBACKS = ("none", "ef14", "ef21", "econtrol", "econtrol:0.5", "dgc:0.9", "momentum:0.9", "masha:0.9")
DOWN_FEEDBACKS = ("none", "ef14", "econtrol")

MakeSpec = Callable[..., RunSpec]


def refused(spec: RunSpec) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        check_spec(spec)
    assert caught.value.id == "spec.invalid"
    return caught.value


def text_of(spec: RunSpec) -> str:
    """TOML of what is not a default."""
    data = spec.model_dump(mode="json", exclude_unset=True)
    tables = {key: data.pop(key) for key in list(data) if isinstance(data[key], dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in data.items()]
    for name, table in tables.items():
        lines.append(f"[{name}]")
        for key, value in table.items():
            inner = (
                (f"{each} = {json.dumps(value[each])}" for each in value) if isinstance(value, dict) else ()
            )
            lines.append(f"{key} = {{ {', '.join(inner)} }}" if inner else f"{key} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def mended(spec: RunSpec, fix: str) -> RunSpec:
    """The run spec whose file says what the fix tells, read as a person's file is."""
    data = tomllib.loads(text_of(spec))
    for told in fix.split(" and "):
        if assigned := re.fullmatch(r"set (\w+)\.(\w+) = (.+)", told):
            data.setdefault(assigned[1], {})[assigned[2]] = json.loads(assigned[3])
        else:
            gone = re.fullmatch(r"leave out (?:\[(\w+)\]|(\w+)\.(\w+))", told)
            assert gone, told
            if gone[1]:
                data.pop(gone[1], None)
            else:
                data[gone[2]].pop(gone[3], None)
    return parse_spec(text_of(RunSpec.model_validate(data)), "run.toml")


def assert_each_fix_does(spec: RunSpec) -> None:
    fix = refused(spec).fix
    assert fix != NO_REMEDY, spec.compression
    for each in fix.split(", or "):
        check_spec(mended(spec, each))


@pytest.mark.parametrize("up", CODECS)
def test_what_is_told_to_be_set_is_accepted(make_spec: MakeSpec, up: str) -> None:
    seen = 0
    for feedback in FEEDBACKS:
        for down, down_feedback in (("ferret:64", "ef14"), ("int8", "none"), ("sign", "econtrol")):
            table = {"up": up, "feedback": feedback, "down": down, "down_feedback": down_feedback}
            spec = make_spec(compression=table)
            try:
                check_spec(spec)
            except ConfigError:
                assert_each_fix_does(spec)
                seen += 1
    assert seen >= len(FEEDBACKS)  # econtrol down, whatever goes up and how


@pytest.mark.parametrize(
    "tables",
    [
        {"server": {"optimizer": "masha"}},
        {"server": {"optimizer": "masha"}, "train": {"epochs": 3}, "sampling": {"count": 4}},
        {"server": {"optimizer": "onebit-adam"}},
        {
            "server": {"optimizer": "onebit-adam", "beta1": 0.8},
            "compression": {"up": "sign", "feedback": "momentum:0.9"},
        },
        {"train": {"algorithm": "spsa"}},
        {"train": {"algorithm": "spsa", "steps": 4, "momentum": 0.9}, "compression": {"up": "one-byte:4"}},
        {"server": {"optimizer": "adam"}, "compression": {"up": "topk:0.01", "feedback": "dgc:0.9"}},
        {"compression": {"down": "replay"}, "aggregation": {"rule": "median"}},
        {"compression": {"down": "replay"}, "server": {"optimizer": "adam"}},
        {"compression": {"up": "powersgd:4:common", "down": "replay"}},
        {"compression": {"up": "topkk:0.01"}},
        {"compression": {"up": ""}},
        {"compression": {"up": "int8++rice"}},
        {"compression": {"down": "|"}},
        {"aggregation": {"rule": "fltrust"}},
        {"aggregation": {"rule": "krum", "faults": 1}, "sampling": {"count": 4}},
        {"aggregation": {"rule": "mean", "faults": 0.2}},
        {"privacy": {"secure_aggregation": True}},
        {"rounds": 1, "compression": {"up": "int8", "warm_up_rounds": 1}},
    ],
)
def test_methods_are_told_what_they_lack(make_spec: MakeSpec, tables: dict[str, Any]) -> None:
    assert_each_fix_does(make_spec(**tables))


@pytest.mark.parametrize(
    ("table", "message", "fix"),
    [
        (
            {"down": "ferret:64"},
            'compression.down = "ferret:64" and compression.down_feedback = "ef14": ef14 needs a contractive codec',
            'set compression.down_feedback = "none"',
        ),
        ({"down": "qsgd:7"}, "compression.down_feedback", 'set compression.down_feedback = "none"'),
        (
            {"up": "terngrad", "feedback": "ef14"},
            'compression.up = "terngrad" and compression.feedback = "ef14": ef14 needs',
            'set compression.feedback = "none"',
        ),
        (
            {"up": "topk:0.01", "feedback": "econtrol:0.5"},
            "eta of 0.5",
            'set compression.feedback = "econtrol"',
        ),
        (
            {"up": "int8+"},
            "compression.up: nothing stands after the + of 'int8+'",
            'set compression.up = "int8"',
        ),
        ({"up": "topkk:0.1+int8"}, "did you mean 'topk'", 'set compression.up = "topk:0.1+int8"'),
        (
            {"up": "sign", "feedback": "ef14", "warm_up_rounds": 30},
            "all 20 rounds",
            "set compression.warm_up_rounds = 4",
        ),
    ],
)
def test_the_first_fix_is_the_nearest(
    make_spec: MakeSpec, table: dict[str, Any], message: str, fix: str
) -> None:
    error = refused(make_spec(rounds=20, compression=table))
    assert message in error.message
    assert error.fix.split(", or ")[0] == fix


def test_two_mistakes_are_mended_at_once(make_spec: MakeSpec) -> None:
    spec = make_spec(compression={"up": "terngrad", "feedback": "ef14", "down": "ferret:64"})
    first = 'set compression.feedback = "none" and set compression.down_feedback = "none"'
    assert refused(spec).fix.split(", or ")[0] == first
    assert_each_fix_does(spec)


def test_where_nothing_helps_it_is_told_where_to_look(make_spec: MakeSpec) -> None:
    table = {"up": "int8|int4", "down": "int8|int4", "warm_up_rounds": 5}
    spec = make_spec(compression=table, aggregation={"rule": "fltrust"}, privacy={"secure_aggregation": True})
    assert refused(spec).fix == NO_REMEDY
    assert remedies.remedies(spec, lambda _: False) == []


# -- warnings -----------------------------------------------------------------------------------------------


def test_each_direction_is_warned_of(make_spec: MakeSpec) -> None:
    up, down = warnings(make_spec(compression={"up": "topk:0.01", "down": "sign", "down_feedback": "none"}))
    assert up == (
        'compression.up = "topk:0.01" and compression.feedback = "none": topk:0.01 is biased, and what it leaves out '
        'is lost; ef14 keeps it and sends it later; set compression.feedback = "ef14"'
    )
    assert down.startswith('compression.down = "sign" and compression.down_feedback = "none": sign is biased')
    assert down.endswith('; set compression.down_feedback = "ef14"')


def test_an_eta_above_delta_is_warned_of(make_spec: MakeSpec) -> None:
    (said,) = warnings(make_spec(compression={"up": "topk:0.1", "feedback": "econtrol:0.3"}))
    assert said.startswith('compression.up = "topk:0.1" and compression.feedback = "econtrol:0.3": ')
    assert "large steps may diverge" in said
    assert said.endswith('; set compression.feedback = "econtrol"')
    assert warnings(make_spec(compression={"up": "topk:0.1", "feedback": "econtrol:0.1"})) == ()


def test_whoever_does_as_warned_is_warned_no_more(make_spec: MakeSpec) -> None:
    seen = 0
    ups = [{"up": up, "feedback": feedback} for up, feedback in product(CODECS, FEEDBACKS)]
    downs = [{"down": down, "down_feedback": feedback} for down, feedback in product(CODECS, DOWN_FEEDBACKS)]
    for table in (*ups, *downs):
        spec = make_spec(compression=table)
        try:
            check_spec(spec)
        except ConfigError:
            continue
        said = warnings(spec)
        for sentence in said:
            spec = mended(spec, sentence.rpartition("; ")[2])
        check_spec(spec)
        assert warnings(spec) == ()
        seen += len(said)
    assert (
        seen == 7
    )  # topk, topk and int8, sign, a choice with sign up without feedback; the first three down


def recommended() -> dict[str, str]:
    """Every run spec and every table of compression that is shown to a person."""
    found = {str(path): path.read_text() for path in (ROOT / "examples").rglob("run*.toml")}
    readme = (ROOT / "README.md").read_text()
    for number, block in enumerate(re.findall(r"```toml\n(.*?)```", readme, re.DOTALL)):
        if "task = " in block and "[[allow]]" not in block:
            found[f"README.md {number}"] = block
    return found


def test_what_is_recommended_is_not_warned_of(make_spec: MakeSpec, tmp_path: Path) -> None:
    texts = recommended()
    assert len(texts) >= 4 and any(name.startswith("README") for name in texts)
    for name, text in texts.items():
        (tmp_path / "run.toml").write_text(text)
        spec, _ = load_spec(tmp_path / "run.toml")
        check_spec(spec)
        assert warnings(spec) == (), name
    assert warnings(make_spec(compression=COMPRESSION)) == ()
    one_byte = {"up": "one-byte:16", "down": "replay"}
    assert warnings(make_spec(compression=one_byte, train={"algorithm": "spsa"})) == ()
    for plain in ("identity", "bf16", "int8", "terngrad", "qsgd:7", "natural", "topk:1.0"):
        assert warnings(make_spec(compression={"up": plain, "down": plain, "down_feedback": "none"})) == (), (
            plain
        )


async def test_warnings_come_with_the_answer_and_into_the_log(stage: Any) -> None:
    tables = {"task": "hand_task:Line", "rounds": 1, "round": {"peers_min": 3}}
    for compression, count in (({"up": "topk:0.01"}, 1), ({}, 0)):
        spec = RunSpec.model_validate({**tables, "compression": compression})
        request = pb.SubmitRunRequest(spec_json=spec.canonical_json(), request_id=f"id-{count}")
        with capture_logs() as logs:
            answer = await stage.call("SubmitRun", request)
            again = await stage.call("SubmitRun", request)
        logged = [line for line in logs if line["event"] == "run.warned"]
        assert list(answer.warnings) == list(again.warnings) == list(warnings(spec))
        assert [line["reason"] for line in logged] == list(answer.warnings)
        assert all(line["run_id"] == answer.run.run_id for line in logged)
        assert len(logged) == count


def test_a_warning_without_a_better_feedback_tells_only_why(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.submission.checks._goes_well", lambda *_: False)
    (told,) = warnings(make_spec(compression={"up": "topk:0.01", "down": "int8"}))
    assert told.startswith('compression.up = "topk:0.01"')
    assert told.endswith("sends it later")
