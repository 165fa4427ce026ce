"""The Dockerfiles and the compose file, checked as far as that goes without building them."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile.*"))
KNOWN = {
    *("ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "HEALTHCHECK"),
    *("LABEL", "RUN", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"),
}


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) in order, continuation lines joined."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^\s*#.*\n", "", path.read_text()))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def final_stage(path: Path) -> list[tuple[str, str]]:
    found = instructions(path)
    start = max(at for at, (name, _) in enumerate(found) if name == "FROM")
    return found[start:]


def problems(path: Path) -> list[str]:
    """What is wrong with a Dockerfile, by our own rules; empty for a good one."""
    found = instructions(path)
    wrong = [f"unknown instruction {name}" for name, _ in found if name not in KNOWN]
    defaults = dict(arguments.split("=", 1) for name, arguments in found if name == "ARG")
    for given in (arguments.split()[0] for name, arguments in found if name == "FROM"):
        image = re.sub(r"\$\{(\w+)\}", lambda named: defaults.get(named[1], ""), given)
        if not re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*", image):
            wrong.append(f"base image {image} is not pinned to a version")
    last = final_stage(path)
    users = [arguments for name, arguments in last if name == "USER"]
    if not users or users[-1] in ("root", "0"):
        wrong.append("runs as root")
    wrong += [f"no {needed}" for needed in ("HEALTHCHECK", "ENTRYPOINT") if needed not in dict(last)]
    for name, arguments in last:
        if name in ("ENTRYPOINT", "CMD") and not arguments.startswith("["):
            wrong.append(f"{name} goes through a shell, which would swallow signals")
    for name, arguments in found:
        if name in ("ENV", "ARG") and re.search(r"(?i)secret|password|token|private_key", arguments):
            wrong.append(f"a secret in {name}")
        if name == "RUN" and re.search(r"\b(sudo|curl|wget)\b|chmod 777", arguments):
            wrong.append(f"RUN {arguments}")
    return wrong


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfile_is_sound(path: Path) -> None:
    assert problems(path) == []


def test_there_is_one_for_each_side() -> None:
    assert [path.name for path in DOCKERFILES] == ["Dockerfile.coordinator", "Dockerfile.peer"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("USER muster", "USER root"), "runs as root"),
        (
            ("python:3.12.8-slim-bookworm", "python:latest"),
            "base image python:latest is not pinned to a version",
        ),
        (("HEALTHCHECK", "LABEL"), "no HEALTHCHECK"),
        (("USER muster", "USER muster\nENV JOIN_TOKEN=abc"), "a secret in ENV"),
        (('CMD ["serve"]', "CMD serve"), "CMD goes through a shell, which would swallow signals"),
    ],
)
def test_the_check_finds_what_it_looks_for(tmp_path: Path, change: tuple[str, str], problem: str) -> None:
    bad = tmp_path / "Dockerfile.coordinator"
    bad.write_text((DEPLOY / "Dockerfile.coordinator").read_text().replace(*change))
    assert problem in problems(bad)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_exists_and_the_whole_wheel_is_among_it(path: Path) -> None:
    copied = [
        source
        for name, arguments in instructions(path)
        if name == "COPY" and "--from" not in arguments
        for source in shlex.split(arguments)[:-1]
    ]
    assert [source for source in copied if not (ROOT / source).exists()] == []
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(wheel["packages"]) | {"pyproject.toml", "README.md"} <= set(copied)


def locked(name: str) -> dict[str, tuple[str, int]]:
    """The version and the number of hashes of each package in a lock file."""
    entries = re.split(r"(?m)^(?=[a-z0-9])", (DEPLOY / name).read_text())[1:]
    return {
        canonical(entry.partition("==")[0]): (
            entry.partition("==")[2].split()[0],
            entry.count("--hash=sha256:"),
        )
        for entry in entries
    }


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_whatever_is_installed_is_locked_with_hashes_in_the_version_that_is_tested() -> None:
    found = locked("torch.lock") | locked("requirements.lock")
    assert not set(locked("torch.lock")) & set(locked("requirements.lock"))
    assert [name for name, (_, hashes) in found.items() if not hashes] == []
    tested = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    versions = {canonical(name): version for name, version in tested.items()}
    differ = {name for name, (version, _) in found.items() if versions.get(name, version) != version}
    assert differ == set(), "run tools/lock"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["project"]["dependencies"], *extras["postgres"], *extras["examples"], "hatchling"]
    names = {canonical(re.split(r"[\[<>=~!]", each)[0]) for each in wanted}
    assert names <= set(found), "run tools/lock"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_nothing_is_installed_that_is_not_locked(path: Path) -> None:
    """But for Muster itself, and for torch from an index of somebody's choice."""
    installs = [
        command
        for name, arguments in instructions(path)
        if name == "RUN"
        for command in re.split(r"&&|;", arguments)
        if "pip install" in command
    ]
    assert len(installs) == 3
    assert all("--no-deps" in command for command in installs)
    assert [command.split("-r")[-1].strip() for command in installs[:2]] == [
        "torch.lock",
        "requirements.lock",
    ]
    assert installs[2].split()[-1] == "."
    version = locked("torch.lock")["torch"][0]
    assert f"torch=={version}" in path.read_text()


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_compose_uses_only_what_compose_knows(compose: dict[str, Any]) -> None:
    top = {key for key in compose if not key.startswith("x-")}
    assert top == {"name", "services", "volumes"}
    known = {
        *(
            "build",
            "cap_drop",
            "command",
            "depends_on",
            "entrypoint",
            "healthcheck",
            "image",
            "init",
            "logging",
        ),
        *(
            "network_mode",
            "read_only",
            "restart",
            "security_opt",
            "shm_size",
            "stop_grace_period",
            "tmpfs",
            "volumes",
        ),
    }
    for name, service in compose["services"].items():
        assert set(service) <= known, name


def test_compose_refers_to_things_that_are_there(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for service in services.values():
        if build := service.get("build"):
            assert (DEPLOY / build["context"] / build["dockerfile"]).exists()
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in compose["volumes"]
        for other in service.get("depends_on", {}):
            assert other in services
        if service["network_mode"].startswith("service:"):
            assert service["network_mode"].removeprefix("service:") in services
    built = {service["image"] for service in services.values() if "build" in service}
    assert {service["image"] for service in services.values()} <= built


def test_compose_publishes_nothing_and_grants_nothing(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert "ports" not in service
        assert not service.get("privileged")
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"] is True


def test_every_service_runs_a_command_that_exists(compose: dict[str, Any]) -> None:
    import typer.main

    from cli.main import build

    for service in compose["services"].values():
        if command := service.get("command"):
            root = typer.main.get_command(build())
            with root.make_context("muster", list(command)) as context:
                _, found, rest = root.resolve_command(context, list(command))
                found.make_context(command[0], rest, parent=context).close()
