"""A rich console that shows what others have written, and obeys none of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from muster.texts import shown


class CleanConsole(Console):
    """Names, reasons and tracebacks reach a person's terminal through here. Colours and links come from styles, so no
    text that is printed has a reason to hold an escape sequence."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(shown(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            # Control segments are rich's own: they move the cursor of a live screen.
            yield segment if segment.control else Segment(shown(segment.text), segment.style)
