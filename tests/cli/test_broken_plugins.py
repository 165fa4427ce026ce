"""A plug-in of somebody else's that cannot be loaded takes down nothing but itself."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest

from methods import BrokenMethodError, kinds, registry
from muster.spec.load import spec_schema
from tests.fake_plugins import PlugIn

Muster = Callable[..., Any]


class Raises(types.ModuleType):
    """In the place of a module whose import fails with an error of its own."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("no licence found")


@pytest.fixture(autouse=True)
def broken(plug_in: PlugIn, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for number, group in enumerate((kinds.SAMPLERS, kinds.CODECS, kinds.RULES)):
        plug_in(group, "licensed", object)
        monkeypatch.setitem(sys.modules, f"a_users_own_{number}", Raises("a_users_own"))


def test_the_error_of_an_import_is_told_and_kept_as_the_cause() -> None:
    with pytest.raises(BrokenMethodError, match="RuntimeError: no licence found") as caught:
        registry.find(kinds.SAMPLERS, "licensed")
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_the_schema_of_run_specs_leaves_it_out() -> None:
    conditions = spec_schema()["$defs"]["SamplingTable"]["allOf"]
    named = {each["if"]["properties"]["policy"]["const"] for each in conditions}
    assert "uniform" in named and "licensed" not in named


@pytest.mark.parametrize(("noun", "other"), [("compressor", "topk"), ("aggregator", "median")])
def test_a_list_has_the_others_and_says_why_it_is_not_there(muster: Muster, noun: str, other: str) -> None:
    done = muster(noun, "list")
    assert done.code == 0 and other in done.out and "licensed" not in done.out
    assert "'licensed'" in done.err and "no licence found" in done.err
    names = {each["name"] for each in muster(noun, "list", "--json").data}
    assert other in names and "licensed" not in names


def test_the_list_of_plug_ins_loads_none(muster: Muster) -> None:
    assert "licensed" in muster("plugin", "list").out
