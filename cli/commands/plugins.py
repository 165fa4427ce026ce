"""`muster plugin list | show`."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.output import emit
from cli.settings import Settings, command
from methods import describe as described
from methods.kinds import KINDS, word
from methods.registry import BrokenMethodError, UnknownMethodError, hint
from muster.errors import ConfigError, NotFoundError

if TYPE_CHECKING:
    from methods.describe import Description

WIDTH = 100

Kind = Annotated[
    str,
    typer.Option(
        "--kind",
        metavar="KIND",
        help="Only of this kind, by its entry-point group: "
        f"{', '.join(group.partition('.')[2] for group in KINDS)}.",
    ),
]


def register(app: typer.Typer) -> None:
    command(app, "list", example="muster plugin list --kind samplers")(list_all)
    command(app, "show", example="muster plugin show poisson")(show)


def list_all(settings: Settings, kind: Kind = "") -> None:
    """Every plug-in that is installed here, with the package that it comes from; none is loaded."""
    from cli.render import table

    found = described.entries(_group(kind))

    def human() -> Any:
        made = table("NAME", "KIND", "PACKAGE", "WHERE")
        for each in found:
            made.add_row(each.name, each.kind, each.package or "-", each.place)
        return made

    emit(settings, [asdict(each) for each in found], human)


def show(
    settings: Settings,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A plug-in, by its entry-point name.")],
    kind: Kind = "",
) -> None:
    """One of them, of every kind that has the name: what it does, demands and takes as options.

    With --json also the JSON Schema of its options.
    """
    try:
        found = described.describe(name, _group(kind))
    except UnknownMethodError as error:
        raise NotFoundError("plugin.not_found", str(error), fix="muster plugin list") from error
    except BrokenMethodError as error:
        raise ConfigError(
            "plugin.broken", str(error), fix="reinstall the package that provides it"
        ) from error
    data = [
        {
            **vars(each),
            "options": [{"name": option.name, "required": option.required} for option in each.options],
        }
        for each in found
    ]
    emit(settings, data, lambda: "\n\n".join(map(_view, found)))


def _view(found: Description) -> str:
    lines = [f"{found.name}, {found.kind}", "", found.text, ""]
    if found.requires:
        first = " ".join(found.requires.partition("\n\n")[0].split())
        lines.append(f"requires: {first}")
    for option in found.options:
        told = "needed" if option.required else f"{option.default!r} unless said"
        lines.append(f"option:   {option.name} ({told})")
        lines += [f"          {line}" for line in textwrap.wrap(option.text, WIDTH)]
    lines.append(f"from:     {found.package or 'no package'}, {found.place}")
    return "\n".join(lines)


def _group(kind: str) -> str:
    """The entry-point group that a person names by its last part, "samplers", or by its word, "sampler"."""
    if not kind:
        return ""
    known = {group.partition(".")[2]: group for group in KINDS}
    words = {word(group): group for group in KINDS}
    found = known.get(kind.replace("-", "_")) or words.get(kind)
    if found is None:
        raise NotFoundError(
            "plugin.unknown_kind",
            f"there is no kind of plug-in {kind!r} {hint(kind, tuple(known))}",
            fix="muster plugin list",
        )
    return found
