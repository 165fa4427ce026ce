"""`muster plugin`: what is installed, of every kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from coordinator.engine.sampling import Uniform
from methods import Requirement, SpecValues, kinds
from tests.fake_plugins import PlugIn

Muster = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Recent(Uniform):
    """Whoever took part last."""

    knobs: ClassVar = {"explore": "share of the cohort that is drawn at random, from 0 to 1"}

    explore: float = 0.1
    size: int

    def requires(self, spec: SpecValues) -> Iterator[Requirement]:
        """Rounds that more than one peer takes part in."""
        yield from ()


def test_all_kinds_are_listed_with_their_packages(muster: Muster, plug_in: PlugIn) -> None:
    plug_in(kinds.SAMPLERS, "recent", Recent)
    rows = muster("plugin", "list", "--json").data
    assert {*(each["group"] for each in rows), kinds.MECHANISMS} == set(
        kinds.KINDS
    )  # of which none is built in
    packages = {(each["kind"], each["name"]): each["package"] for each in rows}
    assert packages["schedule", "synchronous"] == "muster-fl"
    assert packages["sampler", "recent"] == ""
    only = muster("plugin", "list", "--kind", "samplers").out
    assert only.split("\n")[1].split()[:2] == ["poisson", "sampler"]
    assert "synchronous" not in only


def test_one_is_shown_with_its_options_and_what_it_requires(muster: Muster, plug_in: PlugIn) -> None:
    plug_in(kinds.SAMPLERS, "recent", Recent)
    said = muster("plugin", "show", "recent").out
    assert said.startswith("recent, sampler\n\nWhoever took part last.")
    assert "requires: Rounds that more than one peer takes part in." in said
    assert "option:   explore (0.1 unless said)\n          share of the cohort" in said
    assert "option:   size (needed)" in said
    (data,) = muster("plugin", "show", "recent", "--json").data
    assert data["schema"]["required"] == ["size"]
    assert data["schema"]["properties"]["explore"]["type"] == "number"


def test_a_name_of_two_kinds_is_shown_twice_unless_one_is_said(muster: Muster) -> None:
    both = muster("plugin", "show", "momentum", "--json").data
    assert {each["kind"] for each in both} == {"error feedback", "server optimizer"}
    (one,) = muster("plugin", "show", "momentum", "--kind", "feedbacks", "--json").data
    assert one["kind"] == "error feedback"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "poison"), "did you mean 'poisson'?"),
        (("show", "poisson", "--kind", "rules"), "there is no aggregation rule 'poisson'"),
        (("list", "--kind", "sampler_s"), "did you mean 'samplers'?"),
    ],
)
def test_what_there_is_not(muster: Muster, arguments: tuple[str, ...], said: str) -> None:
    done = muster("plugin", *arguments)
    assert done.code != 0 and said in done.err


@pytest.mark.parametrize(
    ("noun", "name", "option"), [("aggregator", "multi-krum", "m"), ("compressor", "topk", "fraction")]
)
def test_the_schema_of_options_comes_with_each_kind(
    muster: Muster, noun: str, name: str, option: str
) -> None:
    schema = muster(noun, "show", name, "--json").data["schema"]
    assert list(schema["properties"]) == [option]
    assert schema["additionalProperties"] is False


@dataclass(frozen=True)
class Untold(Uniform):
    def requires(self, spec: SpecValues) -> Iterator[Requirement]:
        """Rounds of which each has
        more than one peer.

        And more besides."""
        yield from ()


def test_a_class_without_a_docstring_is_not_shown_its_signature(muster: Muster, plug_in: PlugIn) -> None:
    plug_in(kinds.SAMPLERS, "untold", Untold)
    said = muster("plugin", "show", "untold").out
    assert "Untold(" not in said
    assert "requires: Rounds of which each has more than one peer.\n" in said
    (data,) = muster("plugin", "show", "untold", "--json").data
    assert data["schema"]["title"] == "Untold"


@pytest.mark.parametrize("verb", ["list", "show"])
def test_the_help_names_every_kind(muster: Muster, verb: str) -> None:
    said = "".join(muster("plugin", verb, "--help").out.split())
    assert all(group.partition(".")[2] in said for group in kinds.KINDS)
