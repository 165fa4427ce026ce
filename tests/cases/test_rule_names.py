"""Names that rules go by elsewhere mean the same here, and the run keeps the name that it has here."""

from __future__ import annotations

from pathlib import Path

import pytest

from muster import plugins
from muster.errors import MusterError
from muster.spec.load import load_spec
from muster.spec.model import RunSpec


def load(folder: Path, rule: str, more: str = "") -> RunSpec:
    path = folder / "run.toml"
    path.write_text(f'task = "examples.digits:Digits"\nrounds = 1\n[aggregation]\nrule = "{rule}"\n{more}')
    return load_spec(path)[0]


@pytest.mark.parametrize(
    ("given", "meant"), [("fedavg", "mean"), ("FedAvg", "mean"), ("average", "mean"), ("mean", "mean"),
                         ("coordinate_median", "median")]
)  # fmt: skip
def test_a_name_of_elsewhere_means_the_rule(tmp_path: Path, given: str, meant: str) -> None:
    spec = load(tmp_path, given)
    assert spec.aggregation.rule == meant
    assert f'"rule":"{meant}"' in spec.canonical_json()
    assert spec.digest == load(tmp_path, meant).digest


def test_every_other_name_means_one_that_is_installed() -> None:
    for group, others in plugins.ALIASES.items():
        for other, meant in others.items():
            assert meant in plugins.names(group)
            assert other not in plugins.names(group)


def test_what_a_rule_needs_is_asked_under_any_name(tmp_path: Path) -> None:
    with pytest.raises(MusterError, match="multi-krum must be told"):
        load(tmp_path, "MultiKrum")
    assert load(tmp_path, "MultiKrum", "faults = 1\n").aggregation.rule == "multi-krum"


def test_a_misspelt_name_is_still_told_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(MusterError, match="did you mean 'median'"):
        load(tmp_path, "medain")
