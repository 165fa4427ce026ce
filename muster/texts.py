"""Text that comes from outside, made fit to be stored, sent and shown.

Peers' reports, exceptions of tasks, names, sentences of plug-ins: all of it may hold what a database
or protobuf refuses (lone surrogates, NUL) or what a terminal obeys (escape sequences, line breaks, an order of writing
turned round). Such text passes one of these functions where it enters, and `shown` again where it is shown, since
databases of earlier days hold what came before. Nothing here raises, whatever the text, and cleaning what is clean
changes nothing.
"""

from __future__ import annotations

import re
from typing import Any, Literal

LINE_CHARS_MAX = 1_000  # a sentence
TEXT_CHARS_MAX = 16_000  # a traceback, or a message of several lines
DESCRIPTION_CHARS_MAX = 100  # a device, a version, an error id
BYTES_PER_CHAR = 3  # on average, at most, in UTF-8: any script of the world, but not a screen full of emoji

Keep = Literal["start", "end"]

_CUT = "\u2026"
_STAND_IN = "\ufffd"

# ECMA-48: what begins with CSI; strings (OSC, DCS, SOS, PM, APC) with their end; and all shorter ones.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x90-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
)
_BREAKS = re.compile("\r\n|[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
# Controls; surrogates; marks that turn the order of writing round; what is there and cannot be seen.
_UNSAFE = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f"
)
_CONTROLS = re.compile(f"[{_UNSAFE}]")
_NOT_STORABLE = re.compile("[\x00\ud800-\udfff]")


def one_line(text: str, chars_max: int = LINE_CHARS_MAX) -> str:
    """A sentence or a name: one line of at most `chars_max` characters, and three times as many bytes."""
    parts = (part.strip() for part in _BREAKS.split(_plain(text, chars_max, "start").replace("\t", " ")))
    return _cut(" ".join(part for part in parts if part), chars_max, "start")


def many_lines(text: str, chars_max: int = TEXT_CHARS_MAX, *, keep: Keep = "start") -> str:
    """A text whose lines stay lines. `keep`: which end of one that is too long; of a traceback the last lines tell."""
    return _cut(_BREAKS.sub("\n", _plain(text, chars_max, keep)), chars_max, keep)


def shown(text: str) -> str:
    """For a terminal: lines stay lines, and nothing is cut."""
    if text.isprintable():  # nearly always, and then there is nothing to look for
        return text
    return _controls_replaced(_BREAKS.sub("\n", _ESCAPES.sub("", text)))


def storable(text: str) -> str:
    """What both databases and protobuf take, with as little change as that needs."""
    if text.isprintable():  # nearly always, and then there is nothing to look for
        return text
    return _NOT_STORABLE.sub(_stand_in, text)


def storable_tree(value: Any) -> Any:
    """A JSON value in which every text, keys included, is `storable`."""
    match value:
        case str():
            return storable(value)
        case dict():
            return {storable_tree(key): storable_tree(each) for key, each in value.items()}
        case list() | tuple():
            return [storable_tree(each) for each in value]
        case _:
            return value


def escaped_json(document: str) -> str:
    """A JSON document, whose strings then hold nothing that a terminal obeys: the same values, spelled out.

    Outside its strings JSON has no such characters but line feeds, which stay.
    """
    return _CONTROLS.sub(lambda found: _json_escape(found[0]), document)


# -- inside ----------------------------------------------------------------------------------------------------


def _plain(text: str, chars_max: int, keep: Keep) -> str:
    """Without escape sequences and controls; breaks and tabs are left. What is far too long is cut before it is
    looked at."""
    most = 8 * chars_max
    looked_at = text[:most] if keep == "start" else text[-most:]
    if looked_at.isprintable():
        return looked_at
    return _controls_replaced(_BREAKS.sub("\n", _ESCAPES.sub("", looked_at)))


def _controls_replaced(text: str) -> str:
    return _CONTROLS.sub(_stand_in, text)


def _stand_in(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is no UTF-8, as Python spells it
        return f"\\x{code - 0xDC00:02x}"
    return _STAND_IN


def _cut(text: str, chars_max: int, keep: Keep) -> str:
    bytes_max = BYTES_PER_CHAR * chars_max
    if len(text) <= chars_max and len(text.encode()) <= bytes_max:
        return text
    room, room_bytes = chars_max - 1, bytes_max - len(_CUT.encode())
    if room <= 0:
        return _CUT
    if keep == "start":
        return text[:room].encode()[:room_bytes].decode(errors="ignore").rstrip() + _CUT
    return _CUT + text[-room:].encode()[-room_bytes:].decode(errors="ignore").lstrip()


def _json_escape(character: str) -> str:
    code = ord(character)
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
