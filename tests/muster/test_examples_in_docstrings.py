"""Every example in a docstring runs and gives what it says; each rule, pre-rule and attack has one."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

from methods import KINDS, find, kinds, names

ROOT = Path(__file__).parents[2]
PACKAGES = ("methods", "aggregators", "compressors", "muster", "exchange", "peer", "coordinator", "simulator")


def modules() -> list[str]:
    files = (file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    return sorted(
        str(file.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")
        for file in files
        if ">>> " in file.read_text()
    )


@pytest.mark.parametrize("name", modules())
def test_the_examples_of_a_module_are_so(name: str) -> None:
    done = doctest.testmod(import_module(name))
    assert done.attempted and not done.failed


@pytest.mark.parametrize("group", [kinds.RULES, kinds.PRE_RULES, kinds.PEER_RULES, kinds.ATTACKS])
def test_each_rule_has_an_example(group: str) -> None:
    without = [name for name in names(group) if ">>> " not in (find(group, name).__doc__ or "")]
    assert without == []


def test_every_plug_in_says_what_it_is_and_what_its_options_are() -> None:
    from methods import options_of

    for group in KINDS:
        for name in names(group):
            plugin = find(group, name)
            assert plugin.__doc__ or group in (kinds.CODECS, kinds.FEEDBACKS), name  # whose modules say it
            assert all(option.text for option in options_of(plugin, group)), name
            if requires := plugin.__dict__.get("requires"):
                assert requires.__doc__ or group == kinds.CODECS, name
