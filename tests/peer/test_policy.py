"""The policy: nothing runs that it does not name, and its mistakes are told by line."""

from __future__ import annotations

from pathlib import Path

import pytest

from muster.errors import ConfigError, NotAllowedError
from peer.work.policy import load_policy


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    return path


def test_without_any_entry_nothing_is_allowed() -> None:
    with pytest.raises(NotAllowedError) as caught:
        load_policy(None).permit("examples.digits:Digits")
    assert caught.value.id == "peer.task_not_allowed"
    assert "--allow examples.digits:Digits" in caught.value.fix


def test_a_file_that_does_not_exist_yet_allows_nothing_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    with pytest.raises(NotAllowedError) as caught:
        load_policy(path).permit("a:B")
    assert str(path) in caught.value.fix


def test_an_exact_name_and_a_pattern(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '[[allow]]\ntask = "examples.digits:Digits"\ndata = { index = 2 }\n'
        '[[allow]]\ntask = "lab.*:*"\n[allow.data]\nfolder = "/scans"\n',
    )
    policy = load_policy(path)
    assert policy.permit("examples.digits:Digits") == {"index": 2}
    assert policy.permit("lab.scans.lungs:Nodules") == {"folder": "/scans"}
    for refused in ("examples.digits:Digits2", "examples.text:Text", "Lab.scans:Nodules", "xlab.scans:N"):
        with pytest.raises(NotAllowedError):
            policy.permit(refused)


def test_a_star_allows_all() -> None:
    assert load_policy(None, allow=["*"], data={"index": 1}).permit("a.b:C") == {"index": 1}


def test_the_command_line_comes_first_and_its_data_goes_over_the_file(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '[[allow]]\ntask = "a:B"\ndata = { index = 2, kept = true }\n[[allow]]\ntask = "c:D"\n',
    )
    policy = load_policy(path, allow=["c:*"], data={"index": 7})
    assert policy.permit("c:D") == {"index": 7}
    assert policy.permit("a:B") == {"index": 7, "kept": True}


def test_every_mistake_is_told_with_its_line(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '# mine\n[[allow]]\ntask = "a:B"\nfolder = "/x"\n\n[[allow]]\ndata = 3\n\n'
        '[[allow]]\ntask = "no class"\n\n[deny]\n',
    )
    with pytest.raises(ConfigError) as caught:
        load_policy(path)
    assert caught.value.id == "policy.invalid"
    assert sorted(caught.value.message.splitlines()) == sorted(
        [
            f"{path}:4: allow[0].folder: unknown key (known here: data, task)",
            f"{path}:6: allow[1].task: is missing: a task 'package.module:Class' or a pattern of them",
            f"{path}:7: allow[1].data: should be an object, but is 3",
            f"{path}:10: allow[2].task: should be a task 'package.module:Class' or a pattern of them, "
            'but is "no class"',
            f"{path}:12: deny: unknown key (known here: allow)",
        ]
    )


def test_broken_toml_is_told_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, '[[allow]]\ntask = "a:B\n')
    with pytest.raises(ConfigError) as caught:
        load_policy(path)
    assert f"{path}:2: not TOML" in caught.value.message


def test_a_bad_name_on_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_policy(None, allow=["Digits"])
    assert caught.value.message.startswith("--allow Digits: allow[0].task: should be a task")
