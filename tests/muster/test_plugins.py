"""Plug-ins by name."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from methods import kinds, registry
from muster import plugins
from muster.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    points = [
        EntryPoint("half", "fractions:Fraction", "test.group"),
        EntryPoint("gone", "no_module_of_this_name:X", "test.group"),
        EntryPoint("lost", "fractions:NoSuchClass", "test.group"),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "test.group" else [])
    registry.installed.cache_clear()
    yield
    registry.installed.cache_clear()


def test_a_name_is_loaded_when_found(registered: None) -> None:
    from fractions import Fraction

    assert plugins.names("test.group") == ("gone", "half", "lost")
    assert plugins.find("test.group", "half") is Fraction


@pytest.mark.parametrize(
    ("group", "name", "id", "said"),
    [
        ("test.group", "halv", "plugin.unknown", "did you mean 'half'?"),
        ("test.group", "zzz", "plugin.unknown", "known: gone, half, lost"),
        ("test.nothing", "half", "plugin.unknown", "nothing is registered in 'test.nothing'"),
        ("test.group", "gone", "plugin.broken", "no_module_of_this_name"),
        ("test.group", "lost", "plugin.broken", "NoSuchClass"),
    ],
)
def test_what_cannot_be_loaded_is_an_error(
    registered: None, group: str, name: str, id: str, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        plugins.find(group, name)
    assert caught.value.id == id
    assert said in str(caught.value)


def test_every_group_of_the_project_has_a_word_for_its_plugins() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {*project["entry-points"], kinds.MECHANISMS} == set(
        plugins.GROUPS
    )  # of mechanisms none is built in
