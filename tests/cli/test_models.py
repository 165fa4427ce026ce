from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file


def test_list(ask: Callable[..., Any], ask_json: Callable[..., Any]) -> None:
    assert [model["round"] for model in ask_json("model", "list", "digits")] == [1, 2, 3]
    assert len(ask("model", "list", "digits").out.splitlines()) == 4


def test_what_is_kept_no_longer_is_marked(ask: Callable[..., Any], ask_json: Callable[..., Any]) -> None:
    assert [model["pruned"] for model in ask_json("model", "list", "digits")] == [True, False, False]
    kept = ["pruned" not in line for line in ask("model", "list", "digits").out.splitlines()[1:]]
    assert kept == [False, True, True]
    said = ask("model", "pull", "digits@1")
    assert said.code == 1
    assert "error[model.pruned]: the model of round 1 of run 'digits-1a2b' is kept no longer" in said.err
    assert "those of rounds 2, 3 are" in said.err


def test_pull_gives_plain_weights_though_the_download_breaks(
    ask: Callable[..., Any], federation: Any, at_home: Path
) -> None:
    said = ask("model", "pull", "digits", "-o", "model.safetensors", "--json")
    assert said.code == 0, said.err
    assert (said.data["round"], said.data["path"]) == (3, "model.safetensors")
    pulled = load_file("model.safetensors")
    expected = torch.load(federation.folder / "expected.pt", weights_only=True)
    assert pulled.keys() == expected.keys()
    for name, value in expected.items():
        assert pulled[name].dtype == value.dtype, name
        assert torch.equal(pulled[name], value), name
    assert "1048576" in (federation.folder / "pulls").read_text().split()  # it went on where it stood
    assert [path.name for path in at_home.iterdir()] == ["model.safetensors"]


def test_pull_a_round_under_a_name_of_its_own(ask: Callable[..., Any], at_home: Path) -> None:
    said = ask("model", "pull", "digits@2")
    assert said.code == 0
    assert said.out.startswith("digits-1a2b-2.safetensors: round 2, ")
    assert "accuracy 0.92" in said.out
    assert (at_home / "digits-1a2b-2.safetensors").exists()


def test_what_cannot_be_pulled(ask: Callable[..., Any]) -> None:
    assert ask("model", "pull", "digits@7").code == 1
    assert "no model of round 7" in ask("model", "pull", "digits@7").err
    assert "no model yet" in ask("model", "pull", "text").err
    assert ask("model", "pull", "digits@last").code == 2
    said = ask("model", "pull", "digits", "-o", "nowhere/model.safetensors")
    assert said.code == 1
    assert "there is no folder nowhere" in said.err


def test_a_file_that_is_there_is_overwritten_only_when_that_is_said(
    ask: Callable[..., Any], at_home: Path
) -> None:
    kept = at_home / "mine.safetensors"
    kept.write_text("mine")
    for command in (["model", "pull", "digits"], ["run", "export", "digits"]):
        said = ask(*command, "-o", "mine.safetensors")
        assert said.code == 2
        assert "error[cli.confirmation_needed]: mine.safetensors is there already. Overwrite it?" in said.err
        assert kept.read_text() == "mine"
        assert ask(*command, "-o", "mine.safetensors", "--yes").code == 0
        assert kept.read_bytes()[:4] != b"mine"
        kept.write_text("mine")


@pytest.mark.parametrize("command", [["model", "pull", "digits"], ["run", "export", "digits"]])
@pytest.mark.parametrize(
    ("output", "cause"),
    [
        ("file/out", "file is a file, not a folder"),
        ("nowhere/out", "there is no folder nowhere"),
        (".", "it is a folder"),
        ("/", "it is a folder"),
        ("x" * 300, "File name too long"),
        ("/proc/out", "No such file or directory"),
    ],
)
def test_what_cannot_be_written_is_said_in_words(
    ask: Callable[..., Any], at_home: Path, command: list[str], output: str, cause: str
) -> None:
    (at_home / "file").write_text("")
    said = ask(*command, "-o", output)
    assert said.code == 1
    assert cause in said.err
    assert "Traceback" not in said.err
    assert [path.name for path in at_home.iterdir()] == ["file"]


def test_a_name_may_be_as_long_as_the_disk_takes(ask: Callable[..., Any], at_home: Path) -> None:
    for command in (["model", "pull", "digits"], ["run", "export", "digits"]):
        name = command[0] + "ö" * 120
        assert ask(*command, "-o", name).code == 0
        assert (at_home / name).is_file()
