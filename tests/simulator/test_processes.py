from __future__ import annotations

import pytest

from simulator import processes


def test_this_machines_settings_stay_out_of_a_federation_with_files_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = {name for name in processes._own_environment() if name.startswith("MUSTER_")}
    for name in ("MUSTER_COORDINATOR__ADDRESS", "MUSTER_PEER__COORDINATOR", "MUSTER_FAILPOINTS"):
        monkeypatch.setenv(name, "x")
    given = processes._own_environment()
    assert {name for name in given if name.startswith("MUSTER_")} == before | {"MUSTER_FAILPOINTS"}
    assert "PATH" in given
