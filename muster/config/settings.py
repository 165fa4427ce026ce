"""The node config: what one machine says about itself. (What a run computes is the run spec's: `muster.spec`.)

Layers, lowest to highest: defaults, /etc/muster/config.toml, config.toml in the user's config folder
($XDG_CONFIG_HOME/muster), ./muster.toml, the file given with -c, variables MUSTER_SECTION__KEY, flags. One file has
the tables [coordinator] and [peer]. Values are merged key by key, and each can tell where it was said.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import platformdirs
from pydantic import Field, model_validator

from muster import plugins
from muster.config.layers import Layers
from muster.spec.lines import KeyPath, key_lines
from muster.spec.load import format_problem, line_of, parse_toml, read_toml
from muster.spec.model import TASK_PATTERN, Table
from muster.spec.problems import Checked, Problem, check, invalid

LogLevel = Literal["debug", "info", "warning", "error"]

_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.%\w]+\]|[^\s:\[\]]+):(?P<port>\d{1,5})")


def default_files() -> tuple[Path, ...]:
    """Lowest first; those that are not there are passed over."""
    return (
        Path("/etc/muster/config.toml"),
        platformdirs.user_config_path("muster") / "config.toml",
        Path("muster.toml"),
    )


def _own_name() -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", platform.node().partition(".")[0])[:64].strip("-._") or "peer"


def _in_url(path: Path) -> str:
    """As the path of a URL, with all that would end it or mean something else in it written as %XX."""
    return str(path).replace("%", "%25").replace("?", "%3F").replace("#", "%23")


# What both daemons have.
WorkerEnvironment = Annotated[
    tuple[str, ...],
    Field(
        description="environment variables, or patterns, that tasks get besides those that Python, torch and data "
        "loaders need; names that sound like secrets only in full"
    ),
]
WorkerUserName = Annotated[
    str | int | None,
    Field(
        description="name or uid of another user, as whom tasks run: they then cannot open what is in data_dir. Only "
        "where this daemon is root; the user must be able to read Python, Muster, task_folders and the data. Default: "
        "the daemon's own user"
    ),
]
LeastLogLevel = Annotated[LogLevel, Field(description="least important log line that is written")]


class CoordinatorConfig(Table):
    """The coordinator on this machine."""

    address: str = Field(
        default="127.0.0.1:7070",
        description="HOST:PORT to listen on; port 0 takes any free one. Only loopback until peers have identities",
    )
    data_dir: Path = Field(
        default_factory=lambda: platformdirs.user_data_path("muster") / "coordinator",
        description="folder of database, models and updates; give it a disk that can hold spool_bytes_max",
    )
    database_url: str = Field(
        default_factory=lambda data: f"sqlite:///{_in_url(data['data_dir'])}/muster.db",
        description="SQLAlchemy URL. Default: SQLite in data_dir. PostgreSQL: postgresql+psycopg://USER@HOST/NAME, "
        "its password in ~/.pgpass and not here. In a path of SQLite's %, ? and # are %25, %3F and %23",
    )
    heartbeat_seconds: float = Field(
        default=5.0,
        gt=0,
        le=600,
        description="seconds between a peer's signs of life. Lower: losses are seen sooner, more small messages",
    )
    peers_max: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="names that may be enrolled, without removed peers and those lost for a day; new ones beyond are "
        "refused. Higher: more memory, about 2 KiB each",
    )
    suspect_heartbeats: int = Field(
        default=3,
        ge=1,
        description="missed heartbeats after which a peer is asked nothing new. Lower: a slow network costs peers",
    )
    lost_heartbeats: int = Field(
        default=6,
        ge=2,
        description="missed heartbeats after which a peer's work is given up. Higher: rounds wait longer for the dead",
    )
    spool_bytes_max: int = Field(
        default=64 << 30,
        ge=1 << 20,
        description="bytes of updates kept on disk at a time; uploads beyond wait. Peers in a round x model size is "
        "enough; lower stalls rounds",
    )
    disk_reserve_bytes: int = Field(
        default=256 << 20,
        ge=0,
        description="bytes of the disk left free for the database; uploads wait before it is touched. Lower: a full "
        "disk may stop the coordinator itself",
    )
    uploads_max: int = Field(
        default=32,
        ge=1,
        le=4096,
        description="updates received at once, the rest wait their turn. Higher: more memory (about 2 MiB each) and "
        "open files",
    )
    updates_keep_rounds: int = Field(
        default=1,
        ge=0,
        description="ended rounds of a run whose updates stay on disk, for inspection. Higher: more disk",
    )
    models_keep: int = Field(
        default=20,
        ge=1,
        description="newest model versions of a run that stay on disk. Higher: more disk, longer history",
    )
    allow: tuple[Annotated[str, Field(pattern=TASK_PATTERN)], ...] = Field(
        default=(),
        description="tasks or patterns (examples.digits:*) that a run may name, wherever they are installed; whoever "
        "reaches the port has this machine import what is allowed. Default: only those in task_folders",
    )
    ended_runs_keep: int = Field(
        default=20,
        ge=0,
        description="ended runs, the newest, that keep what models_keep and updates_keep_rounds allow; older ones keep "
        "their last version only, until `muster run remove`. Higher: more disk",
    )
    task_folders: tuple[Path, ...] = Field(
        default=(),
        description="folders whose tasks a run may name. Default: none; what allow names is then searched for in the "
        "working directory, after the installed packages",
    )
    worker_environment: WorkerEnvironment = ()
    worker_user: WorkerUserName = None
    log_level: LeastLogLevel = "info"

    @property
    def suspect_seconds(self) -> float:
        return self.heartbeat_seconds * self.suspect_heartbeats

    @property
    def lost_seconds(self) -> float:
        return self.heartbeat_seconds * self.lost_heartbeats

    @model_validator(mode="after")
    def _suspect_first(self) -> Self:
        if self.lost_heartbeats <= self.suspect_heartbeats:
            raise ValueError(
                f"lost_heartbeats ({self.lost_heartbeats}) must be greater than "
                f"suspect_heartbeats ({self.suspect_heartbeats})"
            )
        return self


class AttackTable(Table):
    """A drill: this peer lies on purpose, so that a federation's defences can be seen at work."""

    name: str = Field(description="the attack, by its entry-point name, such as sign-flip, alie or backdoor")
    options: dict[str, Any] = Field(
        default_factory=dict, description="the attack's own, and the drill's: views, classes"
    )


class PeerConfig(Table):
    """The peer on this machine."""

    name: str = Field(
        default_factory=_own_name,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="what others call this peer: at most 64 letters, digits and . _ -; default: the host's name",
    )
    coordinator: str = Field(default="127.0.0.1:7070", description="HOST:PORT of the coordinator")
    data_dir: Path = Field(
        default_factory=lambda data: platformdirs.user_data_path("muster") / "peers" / data["name"],
        description="folder of what outlives a round: identity, held assignments, residuals. One per peer",
    )
    disk_reserve_bytes: int = Field(
        default=256 << 20,
        ge=0,
        description="bytes of the disk left free: work that would need them is refused. Lower: a full disk may stop "
        "the peer itself and others on this machine",
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto, cpu, mps, cuda or cuda:N: where training runs. auto: one worker on each GPU, else the CPU",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="threads that training computes on. Default: this machine's cores, shared with the other peers of "
        "this user on it. Updates may differ in their last bits with another number",
    )
    policy: Path = Field(
        default_factory=lambda: platformdirs.user_config_path("muster") / "policy.toml",
        description="file that says which tasks may run here and on which data; without it none may",
    )
    allow: tuple[str, ...] = Field(
        default=(), description="tasks or patterns allowed without a policy file, before what the file says"
    )
    data: dict[str, Any] = Field(
        default_factory=dict, description="handed to allowed tasks as site.data; never leaves this machine"
    )
    task_folders: tuple[Path, ...] = Field(
        default=(Path(),), description="folders searched for tasks, after the installed packages"
    )
    attack: AttackTable | None = Field(default=None, description="a drill: lie on purpose")
    worker_environment: WorkerEnvironment = ()
    worker_user: WorkerUserName = None
    log_level: LeastLogLevel = "info"


class NodeConfig(Table):
    """One machine's file."""

    coordinator: CoordinatorConfig = Field(default_factory=CoordinatorConfig)
    peer: PeerConfig = Field(default_factory=PeerConfig)


@dataclass(frozen=True)
class LoadedConfig:
    """Settings and where each came from."""

    coordinator: CoordinatorConfig
    peer: PeerConfig
    _layers: Layers

    def origin(self, key: str) -> str:
        """Where `section.key` was said: "FILE:LINE", "environment NAME", "flag --NAME" or "default"."""
        return self._layers.origin(tuple(key.split(".")))

    def rows(self) -> Iterator[tuple[str, Any, str]]:
        """Each key with its value and origin, in the order of the tables."""
        for section, config in (("coordinator", self.coordinator), ("peer", self.peer)):
            for key, value in config.model_dump(mode="json").items():
                yield f"{section}.{key}", value, self.origin(f"{section}.{key}")


def load_config(
    *,
    file: Path | None = None,
    flags: Mapping[str, Mapping[str, Any]] | None = None,
    environment: Mapping[str, str] | None = None,
    files: Sequence[Path] | None = None,
) -> LoadedConfig:
    """Merges the layers. `file` must exist; `flags` are `{"peer": {"name": ...}}`, where None means not given.

    Raises `ConfigError` "config.not_found", "config.unreadable" or "config.invalid", the last with a line
    "PLACE: section.key: what is wrong" for each mistake in any layer.
    """
    layers = Layers(NodeConfig)
    for path in default_files() if files is None else files:
        if path.is_file():
            layers.add_file(path)
    if file is not None:
        layers.add_file(file)
    layers.add_environment(os.environ if environment is None else environment)
    layers.add_flags(flags or {})
    checked = check(NodeConfig, layers.values)
    problems = [*checked.problems, *_contradictions(checked)]
    if problems or checked.mended is None:
        placed = sorted((layers.place(problem.path), format_problem(problem)) for problem in problems)
        raise invalid("config.invalid", "the node config", [f"{place}: {text}" for place, text in placed])
    return LoadedConfig(checked.mended.coordinator, checked.mended.peer, layers)


def check_config_file(path: Path) -> None:
    """Raises what `load_config` would if this were the only layer, with all mistakes in the order of their lines."""
    text = read_toml(path, "config", "config file")
    checked = check(NodeConfig, parse_toml(text, str(path), "config.invalid"))
    lines = key_lines(text)
    placed = [
        (line_of(p.path, lines), format_problem(p)) for p in (*checked.problems, *_contradictions(checked))
    ]
    if placed:
        raise invalid(
            "config.invalid", str(path), [f"{path}:{line}: {said}" for line, said in sorted(placed)]
        )


def config_schema() -> dict[str, Any]:
    """JSON Schema of the config file, for editors."""
    return NodeConfig.model_json_schema()


def _contradictions(checked: Checked[NodeConfig]) -> Iterator[Problem]:
    """What the models leave open because other transports and installed plug-ins have a say."""
    if checked.mended is None:
        return
    addresses: dict[KeyPath, str] = {
        ("coordinator", "address"): checked.mended.coordinator.address,
        ("peer", "coordinator"): checked.mended.peer.coordinator,
    }
    for path, address in addresses.items():
        found = _ADDRESS.fullmatch(address)
        if not checked.doubts(path) and (found is None or int(found["port"]) > 65535):
            yield Problem(path, f"should be HOST:PORT, but is {address!r}")
    attack = checked.mended.peer.attack
    if attack is not None and not checked.doubts(("peer", "attack", "name")):
        said = plugins.unknown("muster.attacks", attack.name)
        if said is not None:
            yield Problem(("peer", "attack", "name"), said)
