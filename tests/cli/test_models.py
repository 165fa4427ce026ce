from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def test_list(ask: Callable[..., Any], ask_json: Callable[..., Any]) -> None:
    assert [model["round"] for model in ask_json("model", "list", "digits")] == [1, 2, 3]
    assert len(ask("model", "list", "digits").out.splitlines()) == 4


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
