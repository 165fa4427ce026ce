"""Run specs: every mistake at once, each with its line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from methods import registry
from muster.errors import ConfigError
from muster.spec.load import load_spec, parse_spec, spec_schema

GOOD = 'task = "examples.digits:Digits"\nrounds = 3\n'


def mistakes(text: str) -> list[str]:
    """The lines of the error, less the heading."""
    with pytest.raises(ConfigError) as caught:
        parse_spec(text, "run.toml")
    assert caught.value.id == "spec.invalid" and caught.value.exit_code == 6
    heading, *lines = caught.value.message.split("\n")
    assert heading == f"run.toml has {len(lines)} mistake{'s' if len(lines) > 1 else ''}"
    return lines


def mistake(text: str) -> str:
    lines = mistakes(text)
    assert len(lines) == 1, lines
    return lines[0]


def test_a_good_spec_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    text = GOOD + (
        "task_options = { hidden = 32, born = 2020-01-01 }\n"
        '[train]\nlr = 1\n[aggregation]\nrule = "krum"\npre = ["bucketing:2", "nnm"]\nfaults = 1\n'
        '[compression]\nup = "topk:0.01"\nfeedback = "ef14"\n[sampling]\ncount = 5\n'
    )
    path.write_text(text)
    spec, read = load_spec(path)
    assert read == text
    assert spec.rounds == 3 and spec.train.lr == 1.0 and spec.aggregation.pre == ("bucketing:2", "nnm")
    assert spec.task_options == {"hidden": 32, "born": "2020-01-01"}


def test_equal_specs_have_equal_digests_however_they_are_written() -> None:
    one = parse_spec(GOOD + "[train]\nlr = 0.1\nepochs = 2\n", "a")
    other = parse_spec(
        "train = {epochs = 2, lr = 1e-1}\nrounds=3\ntask='examples.digits:Digits'\nseed=0", "b"
    )
    assert one.digest == other.digest
    assert one.digest != parse_spec(GOOD + "[train]\nlr = 0.2\nepochs = 2\n", "a").digest


def test_three_mistakes_are_told_at_once_in_the_order_of_their_lines() -> None:
    text = 'task = "examples.digits:Digits"\nrounds = 0\n\n[train]\nepoch = 2\n\n[aggregation]\nrule = "trimed-mean"\n'
    assert mistakes(text) == [
        "run.toml:2: rounds: should be greater than or equal to 1, but is 0",
        "run.toml:5: train.epoch: unknown key (did you mean 'epochs'?)",
        "run.toml:8: aggregation.rule: there is no aggregation rule 'trimed-mean' (did you mean 'trimmed-mean'?)",
    ]


def test_wrong_keys_hide_neither_contradictions_nor_wrong_names() -> None:
    lines = mistakes(
        "rounds = 3\n"
        "[train]\nlr = 'fast'\nepochs = 1\nsteps = 2\n"
        "[aggregation]\nfaults = 3\n"
        "[sampling]\ncount = 6\n"
        "[server]\noptimizer = 'adamm'\n"
    )
    assert [line.split(": ")[:2] for line in lines] == [
        ["run.toml:1", "task"],
        ["run.toml:2", "train"],
        ["run.toml:3", "train.lr"],
        ["run.toml:7", "aggregation.faults"],
        ["run.toml:11", "server.optimizer"],
    ]
    assert "give epochs or steps, not both" in lines[1]
    assert "no rule withstands 3 faulty of 6" in lines[3]


def test_no_contradiction_is_made_of_a_value_that_was_not_written() -> None:
    # grace_seconds contradicts the default deadline, but the deadline is not the default: it is misspelt.
    assert mistake(GOOD + "[round]\ngrace_seconds = 100\ndeadline_seconds = 'x'\n").startswith("run.toml:5: ")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("[round]\ngrace_seconds = 90", "round.grace_seconds: 90 s of grace end at or after"),
        (
            "[round]\nquorum = 0.5\n[sampling]\ncount = 6\n[aggregation]\nfaults = 2",
            "of the 3 updates at which",
        ),
        (
            "[aggregation]\npre = ['buketing:2']\nfaults = 1",
            "aggregation.pre[0]: there is no pre-rule 'buketing'",
        ),
        (
            "[sampling]\ncount = 4\nover_select = 3.0\n[aggregation]\nrule = 'median'\nfaults = 0.2",
            "2 faulty of 4 updates (sampling.count): it takes more than 4; f is 2 (0.2 of a cohort of 12)",
        ),
        ("[evaluate]\non = []", "evaluate.on: names nobody"),
        ("[evaluate]\non = ['peers', 'peers']", "names the same place twice"),
        ("[aggregation]\npre = ['arc', 'nmn']\nfaults = 1", "aggregation.pre[1]: there is no pre-rule 'nmn'"),
        ("[compression]\nup = 'topkk:0.1'", "there is no codec 'topkk' (did you mean 'topk'?)"),
        ("[compression]\nup = 'topk:0.1+int9+rice'", "there is no codec 'int9' (did you mean 'int8'?)"),
        ("[compression]\ndown = 'topk:0.1+int8+rise'", "there is no codec 'rise'"),
        (
            "[compression]\nwarm_up_rounds = 3",
            "compression.warm_up_rounds: 3 first rounds are all 3 rounds of the run, so that nothing would ever go up "
            "as compression.up says; it must be below rounds, such as 1",
        ),
        ("[compression]\nfeedback = 'ef41'", "there is no error feedback 'ef41'"),
        ("[train]\nalgorithm = 'sdg'", "there is no local algorithm 'sdg'"),
        ("[sampling]\npolicy = 'zzz'", "there is no sampler 'zzz' (known: poisson, uniform)"),
        ("[server]\nlr = inf", "server.lr: must be a finite number, but is inf"),
        ("[task_options]\nx = [1, { y = nan }]", "task_options.x[1].y: must be a finite number"),
        ("[train]\nlr = true", "train.lr: should be a valid number, but is true"),
        ("[train]\nbatch_size = '32'", 'train.batch_size: should be a valid integer, but is "32"'),
        (
            "[train]\noptimizer = 'adam'",
            "should be 'sgd' or 'adamw', but is \"adam\" (did you mean 'adamw'?)",
        ),
        ("[train]\nrule = 'mean'", "train.rule: unknown key (did you mean 'aggregation.rule'?)"),
        ("[train]\nzzz = 1", "train.zzz: unknown key (known here: algorithm, batch_size,"),
        ("server = 3", "server: should be a table, but is 3"),
        ("[[train]]\nlr = 1", "train: should be a table"),
    ],
)
def test_each_kind_of_mistake_is_told_in_words(table: str, said: str) -> None:
    assert said in mistake(GOOD + table)


@pytest.mark.parametrize(
    ("rounds", "warm_up", "said"),
    [
        (1, 0, None),
        (2, 1, None),
        (20, 19, None),
        (1, 1, "such as 0"),
        (2, 2, "such as 1"),
        (20, 90, "such as 4"),
    ],
)
def test_a_warm_up_ends_before_the_run_does(rounds: int, warm_up: int, said: str | None) -> None:
    text = f"task = 'a:B'\nrounds = {rounds}\n[compression]\nwarm_up_rounds = {warm_up}\n"
    if said is None:
        parse_spec(text, "run.toml")
    else:
        assert mistake(text).startswith("run.toml:4: compression.warm_up_rounds: ")
        assert mistake(text).endswith(said)


@pytest.mark.parametrize("spelling", ["", "+", "|", "int8+", "+int8", "int8||int4"])
def test_of_a_codec_that_is_not_named_no_name_is_told_to_be_wrong(spelling: str) -> None:
    spec = parse_spec(f"{GOOD}[compression]\nup = '{spelling}'\n", "run.toml")
    assert spec.compression.up == spelling  # `coordinator.submission.checks` tells what is wrong with it


def test_a_task_that_is_no_name_is_told_what_one_looks_like() -> None:
    assert mistake('task = "digits"\nrounds = 1') == (
        "run.toml:1: task: should be 'package.module:Class', but is \"digits\""
    )


@pytest.mark.parametrize(
    ("text", "line"), [("a = ", 1), ("a = 1\na = 2\n", 2), ("x = [1,\n2", 2), ("\n\nx = 1 2\n", 3)]
)
def test_text_that_is_no_toml_is_told_with_its_line(text: str, line: int) -> None:
    assert mistake(text).startswith(f"run.toml:{line}: not TOML: ")


def test_files_that_cannot_be_specs(tmp_path: Path) -> None:
    for name, body, id in [
        ("latin.toml", b"task = 'x'\nname = '\xe9'", "spec.unreadable"),
        ("large.toml", b"#" * (2 << 20), "spec.unreadable"),
    ]:
        (tmp_path / name).write_bytes(body)
        with pytest.raises(ConfigError) as caught:
            load_spec(tmp_path / name)
        assert caught.value.id == id
    assert "large.toml" in caught.value.message
    for path, id in [(tmp_path / "none.toml", "spec.not_found"), (tmp_path, "spec.unreadable")]:
        with pytest.raises(ConfigError) as caught:
            load_spec(path)
        assert caught.value.id == id


def test_without_registered_plugins_names_are_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "installed", lambda group: {})
    assert parse_spec(GOOD + "[aggregation]\nrule = 'my-own'", "x").aggregation.rule == "my-own"


def test_the_schema_tells_every_table_and_refuses_other_keys() -> None:
    schema = spec_schema()
    assert {"task", "rounds", "train", "aggregation"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False


def test_checking_a_spec_imports_no_torch() -> None:
    code = (
        "import sys; from muster.spec.load import parse_spec; "
        f"parse_spec({GOOD!r}, 'x'); "
        "sys.exit('torch' in sys.modules or 'aggregators' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
