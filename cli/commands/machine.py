"""Commands that act on this machine: `demo`, `serve`, `join`, `doctor`, `version`, `completion`."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.json_output import emit_json
from cli.node import node_config, pairs, sections
from cli.output import emit
from cli.settings import Settings, command, show_version


class Shell(StrEnum):
    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


DataDir = Annotated[
    Path | None, typer.Option("--data-dir", metavar="FOLDER", help="Where its state is kept.")
]
TaskFolders = Annotated[
    list[Path] | None,
    typer.Option("--task-folder", metavar="FOLDER", help="Searched for tasks; may be given again."),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="SECTION.KEY=VALUE", help="Any key of the node config; may be given again."
    ),
]


def register(app: typer.Typer) -> None:
    command(app, "demo", example="muster demo")(demo)
    command(app, "serve", example="muster serve --allow 'examples.digits:*'")(serve)
    command(app, "join", example="muster join --name ward-3 --allow 'examples.digits:*' --data index=0")(join)
    command(app, "doctor", example="muster doctor")(doctor)
    command(app, "version", example="muster version")(version)
    command(app, "completion", example="muster completion bash > ~/.bash_completion.d/muster")(completion)


def demo(
    settings: Settings,
    peers: Annotated[int, typer.Option(min=4, max=32, help="Peer processes, one of which will lie.")] = 5,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Rounds of each run.")] = 20,
    attack: Annotated[
        str, typer.Option(metavar="NAME", help="What the liar does to its update.")
    ] = "sign-flip",
) -> int:
    """Four runs on this machine: everybody honest, one peer lying, the same behind a robust rule, and compressed.

    Real processes that talk over loopback; no configuration, nothing to download.
    """
    from cli.demo import run_demo

    return run_demo(peers=peers, rounds=rounds, attack=attack, json_output=settings.json)


def serve(
    settings: Settings,
    *,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help="A task that a run may name, or a pattern; may be given again."),
    ] = None,
    data_dir: DataDir = None,
    task_folder: Annotated[
        list[Path] | None,
        typer.Option(
            "--task-folder",
            metavar="FOLDER",
            help="A folder whose tasks a run may name; may be given again.",
        ),
    ] = None,
    set_: Set = None,
) -> None:
    """Be the coordinator, until interrupted.

    --address says where to listen. A run's task is imported here only if --allow names it or if it lies in a
    --task-folder. A coordinator that was killed takes up every run where it stood.
    """
    from coordinator.server import serve as serve_until_stopped
    from muster.runtime.installation import check_installation
    from muster.runtime.logs import configure_logging

    check_installation()
    flags = sections(set_ or [])
    own = {
        "address": settings.address,
        "allow": allow,
        "data_dir": data_dir,
        "task_folders": task_folder,
    }
    flags["coordinator"] = {**flags.get("coordinator", {}), **_given(own)}
    config = node_config(settings, flags).coordinator
    configure_logging(config.log_level)
    asyncio.run(serve_until_stopped(config))


def join(
    settings: Settings,
    *,
    coordinator: Annotated[
        str | None,
        typer.Argument(metavar="ADDRESS", help="The coordinator's, HOST:PORT; else as configured."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of this peer; unique in the federation.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Says which tasks may run here, and on which data.")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help="A task that may run here, or a pattern; may be given again."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Passed to tasks as site.data and nowhere else; may be given again."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="auto, cpu, mps, cuda or cuda:N.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="To train on; else this machine's cores, shared with your other peers on it."
        ),
    ] = None,
    attack: Annotated[
        str | None, typer.Option(metavar="NAME", help="A drill: lie on purpose, e.g. sign-flip.")
    ] = None,
    attack_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of the attack; may be given again.")
    ] = None,
    data_dir: DataDir = None,
    task_folder: TaskFolders = None,
    set_: Set = None,
) -> None:
    """Serve a coordinator as a peer, until interrupted.

    Nothing runs here that --allow or the policy file does not name. A peer that was killed goes on with the work that
    it holds.
    """
    from muster.runtime.installation import check_installation
    from muster.runtime.logs import configure_logging
    from peer.daemon import run_peer

    check_installation()
    flags = sections(set_ or [])
    own: dict[str, Any] = {
        "coordinator": coordinator or settings.address,
        "name": name,
        "policy": policy,
        "allow": allow,
        "data": pairs(data or [], "--data") or None,
        "device": device,
        "threads": threads,
        "data_dir": data_dir,
        "task_folders": task_folder,
    }
    if attack is not None:
        own["attack"] = {"name": attack, "options": pairs(attack_option or [], "--attack-option")}
    flags["peer"] = {**flags.get("peer", {}), **_given(own)}
    config = node_config(settings, flags).peer
    configure_logging(config.log_level)
    asyncio.run(run_peer(config))


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value not in (None, [])}


async def doctor(settings: Settings) -> int:
    """Look for what is wrong on this machine; each line that is not ok says what to do.

    Exit 1 if anything fails; warnings alone do not.
    """
    from cli.doctor import examine, report_view

    checks = await examine(settings)
    emit(settings, [check.to_json() for check in checks], lambda: report_view(checks))
    return 1 if any(check.state == "fail" for check in checks) else 0


def version(settings: Settings) -> None:
    """The version of Muster and of the protocol that it speaks."""
    show_version(settings)


def completion(
    settings: Settings,
    shell: Annotated[Shell, typer.Argument(help="The shell that is to complete `muster` commands.")],
) -> None:
    """The script that makes a shell complete commands and options."""
    from typer.completion import get_completion_script  # type: ignore[attr-defined]  # from a private module

    script = get_completion_script(prog_name="muster", complete_var="_MUSTER_COMPLETE", shell=shell.value)
    if settings.json:
        emit_json({"shell": shell.value, "script": script})
    else:
        print(script)
