"""Plug-ins by name."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from methods import kinds, registry
from muster import plugins
from muster.errors import ConfigError
from muster.spec.load import parse_spec, spec_schema

ROOT = Path(__file__).parents[2]
SPEC = 'task = "examples.digits:Digits"\nrounds = 3\n'


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


def test_a_kind_of_which_none_is_installed_is_no_checkout_that_was_never_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    everything = registry.entry_points
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [] if group == kinds.MECHANISMS else everything(group=group)
    )
    registry.installed.cache_clear()
    try:
        with pytest.raises(ConfigError) as caught:
            plugins.find(kinds.MECHANISMS, "masks")
        assert caught.value.message == "there is no mechanism 'masks' (none is installed)"
        assert "no installed package has an entry point 'masks'" in caught.value.cause
        with pytest.raises(ConfigError, match=r"run.toml:4: mechanism.name: there is no mechanism 'masks'"):
            parse_spec(SPEC + '[mechanism]\nname = "masks"\n', "run.toml")
        assert parse_spec(SPEC + '[mechanism]\nname = ""\n', "run.toml").mechanism.name == ""
        assert all(found for found in _values_of("allOf", spec_schema()))
    finally:
        registry.installed.cache_clear()


def test_options_of_a_mechanism_without_its_name_are_refused_with_their_line() -> None:
    with pytest.raises(ConfigError, match=r"run.toml:\d: mechanism.name: is missing"):
        parse_spec(SPEC + "[mechanism]\n[mechanism.options]\nscale = 1.0\n", "run.toml")


def _values_of(key: str, node: Any) -> Iterator[Any]:
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    if isinstance(node, dict) and key in node:
        yield node[key]
    for each in inner:
        yield from _values_of(key, each)
