"""Whatever a text holds: it can be stored, sent and shown, it is bounded, and cleaning it twice changes nothing."""

from __future__ import annotations

import json
import os
import sqlite3
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster import texts
from protos.v1 import membership_pb2 as pb

# Far more of what is dangerous than chance alone would bring, halves of sequences among it.
PIECES = st.sampled_from(
    [
        "\x1b", "\x1b[", "\x1b[31m", "\x1b]0;title\x07", "\x1b]8;;http://x\x1b\\", "\x9b2J", "\x9d0;t\x9c", "\x07",
        "\0", "\n", "\r\n", "\r", "\t", "\x0b", "\x85", "\u2028", "\u2029", "\u202e", "\u2066", "\u200f", "\ufeff",
        "\udce9", "\ud83d", "[31m", "m", "]", "\\", " ", "plain", "Zeile é", "\U0001f600", "\u200d", "[bold]",
        "\U000e0041",
    ]
)  # fmt: skip
HOSTILE = st.lists(PIECES | st.text(st.characters(), max_size=3), max_size=20).map("".join)
LIMITS = st.integers(1, 60)
BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def is_plain(text: str, *, lines: bool) -> bool:
    allowed = "\n\t" if lines else ""
    return all(
        character in allowed
        or (
            unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")
            and unicodedata.bidirectional(character) not in BIDI
        )
        for character in text
    )


@given(HOSTILE, LIMITS)
def test_a_line_is_one_line_of_bounded_length(text: str, most: int) -> None:
    line = texts.one_line(text, most)
    assert is_plain(line, lines=False)
    assert len(line) <= most
    assert len(line.encode()) <= texts.BYTES_PER_CHAR * most
    assert texts.one_line(line, most) == line


@given(HOSTILE, LIMITS, st.sampled_from(["start", "end"]))
def test_lines_stay_lines_and_are_bounded(text: str, most: int, keep: texts.Keep) -> None:
    lines = texts.many_lines(text, most, keep=keep)
    assert is_plain(lines, lines=True)
    assert len(lines) <= most
    assert len(lines.encode()) <= texts.BYTES_PER_CHAR * most
    assert texts.many_lines(lines, most, keep=keep) == lines


@given(HOSTILE)
def test_a_terminal_gets_nothing_that_it_obeys(text: str) -> None:
    shown = texts.shown(text)
    assert is_plain(shown, lines=True)
    assert texts.shown(shown) == shown


@given(HOSTILE)
def test_what_is_storable_goes_through_protobuf_and_sqlite(text: str) -> None:
    storable = texts.storable(text)
    assert texts.storable(storable) == storable
    message = pb.Failure(message=storable)
    assert pb.Failure.FromString(message.SerializeToString()).message == storable
    assert sqlite3.connect(":memory:").execute("SELECT ?", (storable,)).fetchone() == (storable,)


@given(
    st.dictionaries(HOSTILE, HOSTILE | st.lists(HOSTILE, max_size=2) | st.none() | st.integers(), max_size=3)
)
def test_json_means_the_same_and_is_plain(value: object) -> None:
    for indent in (None, 2):
        document = texts.escaped_json(json.dumps(value, ensure_ascii=False, indent=indent))
        assert is_plain(document, lines=True)
        assert json.loads(document) == json.loads(json.dumps(value))
    tree = texts.storable_tree(value)
    json.dumps(tree, ensure_ascii=False).encode()


@given(st.text(st.characters(categories=("L", "N", "P", "S")), max_size=60))
def test_honest_text_is_left_alone(text: str) -> None:
    assert texts.one_line(text, 100) == text
    assert texts.many_lines(text, 100) == text
    assert texts.shown(text) == text


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("cpu\x1b[2J\x1b[1;31m\nadmin  ACTIVE", "cpu admin  ACTIVE"),
        ("Error(s) in loading:\n\tMissing key", "Error(s) in loading: Missing key"),
        ("bad row in " + os.fsdecode(b"donn\xe9es.csv"), "bad row in donn\\xe9es.csv"),
        ("a\0b", "a\ufffdb"),
        ("\x1b]0;all is well\x07lost", "lost"),
        ("\x1b\x1b[31m[31mred", "\ufffd[31mred"),
        ("user\u202etxt.exe", "user\ufffdtxt.exe"),
        ("नमस्ते \u200d", "नमस्ते \u200d"),
    ],
)
def test_what_becomes_of_it(text: str, line: str) -> None:
    assert texts.one_line(text) == line


def test_of_a_traceback_the_end_is_kept_and_of_a_sentence_the_beginning() -> None:
    assert texts.many_lines("first\nlast", 5, keep="end") == "\u2026last"
    assert texts.many_lines("first\nlast", 6) == "first\u2026"
    assert texts.one_line("x" * 10_000_000) == "x" * 999 + "\u2026"


@pytest.mark.parametrize("piece", ["\x1b[", "\x1b]", "\x9d", "\x1b[1", " ", "\r", "\x1b]0;"])
def test_no_text_takes_long(piece: str) -> None:
    """Each would take minutes if it were looked at again from every place in it."""
    texts.shown(piece * 500_000)
    texts.one_line(piece * 500_000, 500_000)
