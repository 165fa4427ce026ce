"""The command's entry: the tree of commands, and how what goes wrong becomes a message and an exit status.

0  done                                   5  the coordinator does not answer
1  failed                                 6  a config, policy or run spec is wrong
2  the command is malformed               7  protocol or schema versions differ
3  the run waited for did not finish    130  interrupted
4  not known to the coordinator, or not allowed
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Sequence

import typer

from cli.commands import aggregators as aggregator
from cli.commands import compressors as compressor
from cli.commands import configs, federation, follow, machine, models, peers, plugins, rounds, runs, tasks
from cli.output import print_error
from cli.settings import group, root
from muster.errors import InternalError, MusterError, UsageError

INTERRUPTED = 130

HELP = """$ muster demo

Trains one PyTorch model across machines that keep their data, come and go, and may lie.

Bare verbs act on this machine, nouns act on the federation through its coordinator.
"""


def build() -> typer.Typer:
    """The command with all its subcommands."""
    app = typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
    )
    root(app, help=HELP)
    machine.register(app)
    federation.register(app)
    run = group(app, "run", help="Training runs: submit, follow, steer.")
    runs.register(run)
    follow.register(run)
    rounds.register(group(app, "round", help="Rounds: who took part, with what weight, and why."))
    peers.register(group(app, "peer", help="Peers: who is there; send away, set aside, let back."))
    models.register(group(app, "model", help="Model versions: list, and pull as plain PyTorch weights."))
    tasks.register(group(app, "task", help="Tasks on this machine: try one out before a run does."))
    aggregator.register(
        group(app, "aggregator", help="Aggregation rules and attacks: what there is, what it bears.")
    )
    compressor.register(
        group(app, "compressor", help="Codecs and feedbacks: how small, how true, what is kept.")
    )
    plugins.register(group(app, "plugin", help="Plug-ins of every kind: what is installed, and its options."))
    configs.register(group(app, "config", help="Settings of this machine, and run specs: show, check."))
    return app


def main() -> None:
    """The console script; gives the exit status."""
    sys.exit(execute(sys.argv[1:]))


def execute(arguments: Sequence[str]) -> int:
    """Runs one command; the exit status. Nothing but a defect of Python itself gets past it."""
    # gRPC's C core writes to standard error in addition to raising. The raised error is enough.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    as_json = "--json" in arguments
    no_color = "--no-color" in arguments
    if "_MUSTER_COMPLETE" in os.environ:
        from typer.completion import completion_init  # type: ignore[attr-defined]  # from a private module

        completion_init()
    try:
        result = build()(args=list(arguments), prog_name="muster", standalone_mode=False)
        return int(result or 0)
    except typer.Abort:
        print("stopped: nothing was done", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except typer.TyperException as error:
        failure: MusterError = _usage(error)
    except MusterError as error:
        failure = error
    except Exception as error:
        failure = _defect(error)
    print_error(failure, as_json=as_json, no_color=no_color)
    return failure.exit_code


def _defect(error: Exception) -> MusterError:
    """Of Muster, whose traceback is worth more than a bare message, unless something stands in for its packages."""
    from muster.runtime.installation import check_installation

    try:
        check_installation()
    except MusterError as failure:
        return failure
    traceback.print_exception(error)
    return InternalError(
        "internal.error",
        f"{type(error).__name__}: {error}",
        cause="a defect of Muster itself; the traceback is above",
    )


def _usage(error: typer.TyperException) -> UsageError:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "muster"
    message = error.format_message()
    unknown = re.match(r"No such command '([a-z-]+)'\.$", message)
    if unknown and path == "muster" and (nouns := _nouns_with(unknown[1])):
        meant = " or ".join(f"'muster {noun} {unknown[1]}'" for noun in nouns)
        message += f" Did you mean {meant}?"
    return UsageError("cli.usage", message, fix=f"{path} --help")


def _nouns_with(verb: str) -> list[str]:
    """Those that have a command of this name."""
    return [
        str(noun.name)
        for noun in build().registered_groups
        if noun.typer_instance is not None
        and any(command.name == verb for command in noun.typer_instance.registered_commands)
    ]


if __name__ == "__main__":
    main()
