"""What a training loop of the user's own reports: numbers of any library, and by name what is no count."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from muster import FitReport
from muster.errors import TaskError
from muster.task.fitreport import checked
from muster.task.metrics import EXAMPLES_MAX

MADE: tuple[Any, ...] = (int, np.int64, np.uint64, torch.tensor, np.array, np.atleast_1d)


@given(count=st.integers(0, EXAMPLES_MAX), make=st.sampled_from(MADE))
def test_counts_of_any_library_are_counts(count: int, make: Any) -> None:
    found = checked(FitReport(examples=make(count), steps=make(count), metrics={"loss": 1.0}), "a:B.fit")
    assert found == FitReport(examples=count, steps=count, metrics={"loss": 1.0})
    assert json.loads(json.dumps([found.examples, found.steps])) == [count, count]


class Odd:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


@given(st.sampled_from([-1, 1.5, float("nan"), float("inf"), None, "3", [3], np.ones(2), 2**60, Odd()]))
def test_what_is_no_count_is_named(value: Any) -> None:
    with pytest.raises(TaskError, match=r"a:B\.fit gave steps=.*no count") as caught:
        checked(FitReport(examples=1, steps=value), "a:B.fit")
    assert caught.value.id == "task.bad_report"


@pytest.mark.parametrize("report", [5, {"examples": 3}, Odd(), torch.ones(3)])
def test_what_is_no_report_is_named(report: Any) -> None:
    with pytest.raises(TaskError, match=r"a:B\.fit gave .*no FitReport"):
        checked(report, "a:B.fit")
