"""Where a plug-in's author finds what a plug-in is written against, and what it costs to look."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

WITH_TORCH = ("aggregators", "aggregators.attacks", "compressors")
LAZY = (
    *(
        "methods",
        "exchange",
        "coordinator.engine",
        "peer.training",
        "simulator",
        "muster.config",
        "muster.files",
    ),
    *("muster.model", "muster.spec", "muster.task", "muster.transport"),
)
INTERFACES = {
    "aggregators": ("Rule", "PreRule", "Attack"),
    "compressors": ("Codec", "Feedback"),
    "coordinator.engine": ("Sampler", "Schedule"),
    "exchange": (
        *("LocalAlgorithm", "ServerOptimizer", "Contribution", "Group", "SUM", "ADD", "F64", "Mechanism"),
        *("AggregationRefused", "UpdateRequest", "admit", "mix", "apply", "states_of"),
    ),
    "methods": ("Requirement", "Requires", "SpecValues"),
    "muster": ("Task", "Site", "FitContext", "FitReport", "RunSpec"),
    "simulator": ("start_local", "run", "Network", "FakeCoordinator", "FakePeer"),
}


@pytest.mark.parametrize("package", [*WITH_TORCH, *LAZY])
def test_every_public_name_is_there_and_described(package: str) -> None:
    module = import_module(package)
    assert module.__doc__ and module.__all__
    assert sorted(module.__all__) == sorted(set(module.__all__))
    for name in module.__all__:
        found = getattr(module, name)
        if callable(found) and getattr(found, "__module__", "").partition(".")[0] in {
            "exchange",
            "coordinator",
        }:
            assert found.__doc__, name
    assert set(module.__all__) <= set(dir(module))


def test_each_interface_is_in_one_place() -> None:
    for package, names in INTERFACES.items():
        assert set(names) <= set(import_module(package).__all__), package


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    for package in ("exchange", "coordinator.engine", "simulator", "muster.model"):
        with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'Sampel'"):
            _ = import_module(package).Sampel


def test_looking_costs_no_torch() -> None:
    code = f"import sys\nfor name in {LAZY!r}: __import__(name)\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_samplers_and_schedules_are_had_without_torch() -> None:
    code = "import sys\nfrom coordinator.engine import Sampler, Schedule, CloseRound, PeerView, Synchronous\n"
    code += (
        "from exchange import LocalAlgorithm, ServerOptimizer, UpdateFacts\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
