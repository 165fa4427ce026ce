"""What a role's work is: an evaluation, or training by the algorithm of that name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.spec.model import RunSpec
from muster.work import TRAIN, Work, algorithm_of, evaluates
from peer.connection.checks import offer_refusal
from peer.work.orders import Site, TrainOrder, train_order
from protos.v1 import membership_pb2 as pb

SPEC = RunSpec.model_validate(
    {"task": "toy_task:Toy", "rounds": 1, "train": {"algorithm": "fedprox", "options": {"mu": 0.5}}}
)


def _order(role: str, params: dict[str, Any]) -> TrainOrder:
    work = pb.Work(role=role, base=pb.Base(version=3, digest="b"), params_json=json.dumps(params))
    offer = pb.Assignment(assignment_id="r.4.ada.1", run_id="r", round=4, work=work)
    here = Path("/nowhere")
    return train_order(Site(name="ada"), offer, SPEC, data={}, device="cpu", base=here, stem=here, state={})


def test_the_usual_role_trains_by_the_runs_algorithm() -> None:
    order = _order(TRAIN, {})
    assert (order.train["algorithm"], order.train["options"]) == ("fedprox", {"mu": 0.5})
    assert (order.base_version, order.base_digest) == (3, "b")


def test_a_works_params_say_options_over_those_of_the_spec() -> None:
    assert _order(TRAIN, {"options": {"mu": 2.0}, "slot": 1}).train["options"] == {"mu": 2.0}


def test_another_role_trains_by_the_algorithm_of_that_name_with_its_own_options() -> None:
    order = _order("anchor", {"options": {"steps": 3}})
    assert (order.train["algorithm"], order.train["options"]) == ("anchor", {"steps": 3})
    assert algorithm_of("anchor", "sgd") == "anchor"
    assert not evaluates("anchor")


@pytest.mark.parametrize("params", ["[]", "{", '{"options": 1}', '"x"', "[" * 5000])
def test_params_that_are_no_object_are_refused_by_name(params: str) -> None:
    work = pb.Work(role=TRAIN, base=pb.Base(digest="b", layout_digest="l"), params_json=params)
    offer = pb.Assignment(
        assignment_id="r.1.ada.1", run_id="r", work=work, spec_json="{}", deadline_seconds=1.0
    )
    refusal = offer_refusal(offer, "ada")
    assert refusal is not None
    assert "its work's params are no JSON object" in refusal.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.text(), st.integers(0, 2**31), st.lists(st.text(), max_size=3), st.dictionaries(st.text(), JSON))
def test_work_comes_back_from_its_json(
    role: str, base: int, groups: list[str], params: dict[str, Any]
) -> None:
    work = Work(role=role, base=base, groups=tuple(groups), params=params)
    assert Work.from_json(work.to_json()) == work
