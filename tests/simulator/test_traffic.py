"""What `benchmarks.traffic` makes of the bytes that runs report."""

from __future__ import annotations

import math

import pytest

from benchmarks import traffic
from benchmarks.traffic_settings import DENSE, SETTINGS, WORKLOADS, Setting, Workload
from coordinator.submission.checks import check_spec
from protos.v1 import admin_pb2 as pb


def _trained(*, accuracy: float, up: int, down: int) -> traffic.Trained:
    rounds = [pb.Round(number=1, ended_at=10.0)]
    rounds += [pb.Round(number=number, ended_at=10.0 + number) for number in (2, 3, 4)]
    run = pb.Run(rounds_committed=4, bytes_up=up, bytes_down=down, metrics={"accuracy": accuracy})
    return traffic.trained(run, rounds, wire=(up + 10, down + 10))


def test_a_ratio_is_that_of_the_totals_over_all_seeds() -> None:
    dense = [_trained(accuracy=0.9, up=1000, down=2000), _trained(accuracy=0.8, up=1000, down=2000)]
    small = [_trained(accuracy=0.896, up=10, down=110), _trained(accuracy=0.796, up=30, down=130)]
    found = traffic.row("digits", Setting(name="small"), small, dense)
    assert (found["ratio_up"], found["ratio_down"]) == (50, pytest.approx(2000 / 120))
    assert found["ratio_both"] == pytest.approx(3000 / 140)
    assert found["ratio_wire"] == pytest.approx(3020 / 160)
    assert math.isclose(found["points_lost"], 0.4, abs_tol=1e-9)
    assert found["within_half_a_point"]
    assert found["round_seconds"] == 1.0


def test_half_a_point_is_the_most_that_may_be_lost() -> None:
    dense = [_trained(accuracy=0.9, up=1, down=1)]
    for accuracy, within in ((0.8951, True), (0.8949, False), (0.99, True)):
        found = traffic.row("digits", Setting(name="x"), [_trained(accuracy=accuracy, up=1, down=200)], dense)
        assert found["within_half_a_point"] == within


def test_every_setting_is_measured_against_the_dense_run_of_its_kind() -> None:
    chosen = [setting for setting in SETTINGS if setting.name != DENSE]
    settings = traffic.with_dense(chosen)
    for attacked in (False, True):
        first = next(setting for setting in settings if setting.attacked == attacked)
        assert not first.compression
    assert len({setting.name for setting in SETTINGS}) == len(SETTINGS)


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=lambda workload: workload.name)
def test_a_coordinator_takes_every_setting(workload: Workload) -> None:
    for setting in traffic.installed(SETTINGS):
        check_spec(workload.spec(setting, traffic.PEERS, seed=0))
