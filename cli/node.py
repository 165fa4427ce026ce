"""This machine's own config, with what the command line says on top."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.settings import Settings
from muster.errors import UsageError

if TYPE_CHECKING:
    from muster.config.settings import LoadedConfig

Flags = dict[str, dict[str, Any]]


def node_config(settings: Settings, flags: Mapping[str, Mapping[str, Any]] | None = None) -> LoadedConfig:
    """All layers; `flags` by section, None where one was not given. Raises `ConfigError`."""
    from muster.config.settings import load_config

    return load_config(file=settings.config, flags=flags)


def coordinator_address(settings: Settings) -> str:
    """Where the coordinator is: --address, or what the config says of it as this machine's own or as its peer's."""
    if settings.address:
        return settings.address
    config = node_config(settings)
    own_is_said = config.origin("coordinator.address") != "default"
    if config.origin("peer.coordinator") != "default" and not own_is_said:
        return config.peer.coordinator
    address = config.coordinator.address
    if address.endswith(":0"):
        # Any free port was asked for; the coordinator has left word of the one it took.
        bound = Path(config.coordinator.data_dir) / "coordinator.address"
        return bound.read_text().strip() if bound.exists() else address
    return address


def task_folders(settings: Settings, given: Sequence[Path] | None) -> list[Path]:
    """Where a task may lie on this machine: the folders given, those of the node config, and the working directory."""
    config = node_config(settings)
    return [*(given or ()), *config.coordinator.task_folders, *config.peer.task_folders, Path()]


def pairs(given: Sequence[str], option: str) -> dict[str, Any]:
    """["index=0", "path=/data/x-rays"] -> {"index": 0, "path": "/data/x-rays"}.

    A value is TOML if it reads as such (numbers, true, lists), else text. Raises `UsageError`.
    """
    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError("cli.usage", f"{option} {text!r} is not KEY=VALUE", fix=f"{option} index=0")
        found[key] = _value(value)
    return found


def sections(given: Sequence[str]) -> Flags:
    """["coordinator.models_keep=3"] -> {"coordinator": {"models_keep": 3}}. Raises `UsageError`."""
    found: Flags = {}
    for name, value in pairs(given, "--set").items():
        section, dot, key = name.partition(".")
        if not dot or not key:
            raise UsageError(
                "cli.usage",
                f"--set {name!r} names no section",
                fix="--set coordinator.models_keep=3; `muster config show` lists all keys",
            )
        found.setdefault(section, {})[key] = value
    return found


def _value(text: str) -> Any:
    try:
        read = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return read["value"] if set(read) == {"value"} else text
