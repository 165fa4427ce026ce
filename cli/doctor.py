"""`muster doctor`: what is wrong on this machine, and what to do about it."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.settings import Settings
from muster.errors import MusterError, UnreachableError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from muster.config.settings import LoadedConfig

PYTHON_MIN = (3, 11)
DISK_FREE_WARN_BYTES = 2 << 30  # a few versions of a middling model and their updates
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True, kw_only=True)
class Check:
    """`state` is "ok", "warn" (works, but look at it) or "fail"; `fix` says what to do about the latter two."""

    name: str
    state: str
    message: str
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def ok(name: str, message: str) -> Check:
    """A check that passed."""
    return Check(name=name, state="ok", message=message)


def warn(name: str, message: str, fix: str) -> Check:
    """A check that passed with a remark."""
    return Check(name=name, state="warn", message=message, fix=fix)


def fail(name: str, message: str, fix: str) -> Check:
    """A check that failed, and how to fix it."""
    return Check(name=name, state="fail", message=message, fix=fix)


async def examine(settings: Settings) -> list[Check]:
    """All checks, in the order in which a person would look. Raises nothing: what a check meets is its finding."""
    from cli.node import coordinator_address, node_config

    checks = [python(), packages()]
    try:
        config = node_config(settings)
    except MusterError as error:
        return [*checks, fail("config", error.message, error.fix or "muster config show --origin"), torch()]
    checks.append(ok("config", "every setting is valid"))
    reached = await coordinator(settings)
    own = coordinator_address(settings) == config.coordinator.address
    checks += [reached, port(config, running=own and reached.state == "ok")]
    checks.append(folder("coordinator data", Path(config.coordinator.data_dir), "coordinator.data_dir"))
    checks.append(folder("peer data", Path(config.peer.data_dir), "peer.data_dir"))
    checks += [await asyncio.to_thread(database, config.coordinator.database_url), policy(config), torch()]
    return checks


def report_view(checks: list[Check]) -> RenderableType:
    """The table of all checks."""
    from rich.text import Text

    text = Text()
    for check in checks:
        text.append(f"{check.state:<6}", style=STYLES[check.state]).append(f"{check.name:<18}", style="bold")
        text.append(check.message + "\n")
        if check.fix:
            text.append(" " * 6 + f"{'fix:':<18}{check.fix}\n")
    return text


def python() -> Check:
    """Whether this Python is new enough."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < PYTHON_MIN:
        return fail("python", f"{found} is too old", "install Python 3.11 or newer")
    return ok("python", f"{found}, {sys.executable}")


def packages() -> Check:
    """Whether the packages are the installed ones."""
    from muster.runtime.installation import check_installation
    from muster.runtime.version import muster_version

    return _guarded("packages", lambda: f"Muster {muster_version()} in {check_installation().root}")


async def coordinator(settings: Settings) -> Check:
    """A machine may well have none yet, so one that does not answer is a warning; one that differs is a failure."""
    from cli.client import connect
    from protos.v1 import admin_pb2 as pb

    async def ask() -> str:
        async with connect(settings) as client:
            status: pb.GetStatusResponse = await client.call("GetStatus", pb.GetStatusRequest())
        return f"{status.address} answers: Muster {status.coordinator_version}, protocol {status.protocol}"

    return await _guarded_async("coordinator", ask)


def port(config: LoadedConfig, *, running: bool) -> Check:
    """Whether a coordinator could listen here."""
    address = config.coordinator.address
    host, _, number = address.rpartition(":")
    if running:
        return ok("port", f"{address}: a coordinator answers already")
    host = host.removeprefix("[").removesuffix("]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            # As servers do: a port whose last connections are still dying is free all the same.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, int(number)))
    except OSError as error:
        fix = "stop what uses it (`ss -ltnp`), or set coordinator.address to another port"
        return fail("port", f"{address} cannot be used: {error.strerror}", fix)
    return ok("port", f"{address} is free")


def folder(name: str, path: Path, key: str) -> Check:
    """Whether files can be made in it, or it itself in the nearest folder above it that is there."""
    nearest = next(each for each in (path, *path.parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(b"muster")
    except OSError as error:
        return fail(name, f"{path} cannot be written: {error.strerror}", f"make it writable, or set {key}")
    from cli.render import size

    free = shutil.disk_usage(nearest).free
    message = f"{path}: {size(free)} free" + ("" if path.exists() else ", will be made")
    if free < DISK_FREE_WARN_BYTES:
        return warn(name, message, f"free some space, or set {key} to a larger disk")
    return ok(name, message)


def database(url: str) -> Check:
    """Whether the database can be read and has a schema that this version can use. Changes nothing."""
    from sqlalchemy import create_engine, make_url
    from sqlalchemy.exc import SQLAlchemyError

    from coordinator.store.migrate import current, head

    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if not parsed.database or not Path(parsed.database).exists():
            return ok("database", "none yet: `muster serve` makes it")
        parsed = make_url(f"sqlite:///file:{Path(parsed.database).absolute()}?mode=ro&uri=true")
    shown = parsed.render_as_string(hide_password=True)
    engine = create_engine(parsed)
    try:
        with engine.connect() as connection:
            found, wanted = current(connection), head()
    except (SQLAlchemyError, ImportError) as error:
        cause = str(getattr(error, "orig", None) or error).splitlines()[0]
        return fail("database", f"{shown}: {cause}", "start it, or mend coordinator.database_url")
    finally:
        engine.dispose()
    if found == wanted:
        return ok("database", f"schema {found}")
    return warn(
        "database", f"schema {found}, this version uses {wanted}", "`muster serve` brings it up to date"
    )


def policy(config: LoadedConfig) -> Check:
    """Without a policy a peer runs nothing, which is safe and seldom meant."""
    from peer.work.policy import load_policy

    path = Path(config.peer.policy)
    if not path.exists():
        fix = f"write {path} ([[allow]] task = ...), or join with --allow"
        return warn("policy", f"{path} is not there: a peer of this machine would run nothing", fix)
    return _guarded("policy", lambda: f"{path} allows {len(load_policy(path).entries)} kinds of task")


def torch() -> Check:
    """Which torch is installed, and which devices it sees."""
    try:
        import torch as library
    except Exception as error:  # a broken installation raises OSError, RuntimeError and others
        return fail("torch", f"cannot be loaded: {error}", "pip install torch")
    version = str(library.__version__)
    if library.cuda.is_available():
        names = ", ".join(library.cuda.get_device_name(at) for at in range(library.cuda.device_count()))
        return ok("torch", f"{version}, {names}")
    if library.backends.mps.is_available():
        return ok("torch", f"{version}, Apple GPU")
    if Path("/dev/nvidiactl").exists():
        return warn(
            "torch",
            f"{version} sees no GPU, but the machine has one",
            "install the CUDA build: https://pytorch.org",
        )
    return ok("torch", f"{version}, {os.cpu_count()} CPU cores, no GPU")


def _guarded(name: str, examine_it: Callable[[], str]) -> Check:
    try:
        return ok(name, examine_it())
    except MusterError as error:
        return fail(name, error.message, error.fix)


async def _guarded_async(name: str, examine_it: Callable[[], Awaitable[str]]) -> Check:
    try:
        return ok(name, await examine_it())
    except UnreachableError as error:
        return warn(name, error.message, error.fix)
    except MusterError as error:
        return fail(name, error.message, error.fix)
