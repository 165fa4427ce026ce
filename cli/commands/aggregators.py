"""`muster aggregator list | show`."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.output import emit, warn
from cli.settings import Settings, command
from methods.kinds import ATTACKS, PEER_RULES, PRE_RULES, RULES
from methods.registry import broken
from muster import plugins
from muster.errors import NotFoundError

if TYPE_CHECKING:
    from aggregators import Description


def register(app: typer.Typer) -> None:
    command(app, "list", example="muster aggregator list")(list_all)
    command(app, "show", example="muster aggregator show trimmed-mean")(show)


def list_all(settings: Settings) -> None:
    """Every rule, pre-rule and attack that is installed here, with what it bears."""
    import aggregators
    from cli.render import table

    found = aggregators.everything()

    def human() -> Any:
        made = table("NAME", "KIND", "BEARS", "WHAT IT IS")
        for each in found:
            made.add_row(each.name, each.kind, each.breakdown or "-", each.summary)
        return made

    emit(settings, [asdict(each) for each in found], human)
    for group in (RULES, PRE_RULES, ATTACKS, PEER_RULES):
        warn(settings, broken(group).values())


def show(
    settings: Settings,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A rule, a pre-rule or an attack; also with its value, bucketing:2."
        ),
    ],
) -> None:
    """One of them: its equation, bound, cost, needs, options and source."""
    import aggregators

    try:
        found = aggregators.describe(plugins.canonical("muster.rules", name))
    except aggregators.RuleError as error:
        raise NotFoundError("aggregator.not_found", str(error), fix="muster aggregator list") from error
    emit(settings, asdict(found), lambda: _view(found))


def _view(found: Description) -> str:
    lines = [f"{found.name}, {_a(found.kind)}", "", found.text, ""]
    if found.breakdown:
        lines.append(f"bears:    {found.breakdown}")
    lines += [f"needs:    {need}" for need in found.needs]
    if found.score:
        lines.append(f"score:    {found.score}")
    for name, value in found.options.items():
        lines.append(f"option:   {name} = {value}")
        lines += [f"          {line}" for line in textwrap.wrap(found.knobs[name], 100)]
    lines.append(f"source:   {found.source}")
    return "\n".join(lines)


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
