"""The line of every key, for every way in which TOML lets one be written."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.spec.lines import KeyPath, key_lines

TEXT = '''# a comment with = and [brackets]
top = 1            # and one behind
"quo\\u0074ed key" = "a # no comment"
'literal' = 'no \\ escape'
dotted . "in ner" . deep = 1979-05-27 07:32:00
long = """
fake = 1
\\""" still inside
[fake]"""
raw = \'\'\'
fake = 2\'\'\'
array = [
  1, # one
  [2, 3],
  { a = 1, b.c = [ { d = 2 } ] },
]
inline = { x = 1, y = { z = "}" } }
empty = {}
none = []

[table]
key = true
[ table . "sub table" ]
key = -1.5e3

[[many]]
n = 1
[[many]]
n = 2
[many.inner]
m = 3
[[many.deeper]]
k = 4
[late.implicit]
v = 0x1F'''


def test_every_way_to_write_a_key() -> None:
    lines = key_lines(TEXT)
    expected: dict[KeyPath, int] = {
        ("top",): 2,
        ("quoted key",): 3,
        ("literal",): 4,
        ("dotted", "in ner", "deep"): 5,
        ("long",): 6,
        ("raw",): 10,
        ("array",): 12,
        ("array", 0): 13,
        ("array", 1, 1): 14,
        ("array", 2, "a"): 15,
        ("array", 2, "b", "c", 0, "d"): 15,
        ("inline", "y", "z"): 17,
        ("empty",): 18,
        ("none",): 19,
        ("table",): 21,
        ("table", "key"): 22,
        ("table", "sub table", "key"): 24,
        ("many",): 26,
        ("many", 0, "n"): 27,
        ("many", 1): 28,
        ("many", 1, "n"): 29,
        ("many", 1, "inner", "m"): 31,
        ("many", 1, "deeper", 0, "k"): 33,
        ("late",): 34,
        ("late", "implicit", "v"): 35,
    }
    assert {path: lines.get(path) for path in expected} == expected


def paths(value: Any, above: KeyPath = ()) -> set[KeyPath]:
    if isinstance(value, dict):
        inner = [paths(v, (*above, k)) for k, v in value.items()]
    elif isinstance(value, list):
        inner = [paths(v, (*above, i)) for i, v in enumerate(value)]
    else:
        inner = []
    return set().union({above} if above else set(), *inner)


def test_nothing_is_found_that_the_parser_does_not_find() -> None:
    assert set(key_lines(TEXT)) == paths(tomllib.loads(TEXT))


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_line_endings_do_not_matter(ending: str) -> None:
    assert key_lines(f"a = 1{ending}{ending}b = 2{ending}") == {("a",): 1, ("b",): 3}


plain = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12)
values = st.recursive(
    st.one_of(st.booleans(), st.integers(-9, 9), plain),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(plain, inner, max_size=3)),
    max_leaves=8,
)


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def written(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list):
        return "[\n" + ",\n".join(written(v) for v in value) + "\n]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(k)} = {written(v)}" for k, v in value.items()) + "}"
    return str(value)


@given(st.dictionaries(plain, values, max_size=4))
def test_any_document_has_a_line_for_each_of_its_keys(data: dict[str, Any]) -> None:
    text = "".join(f"{quoted(key)} = {written(value)}\n" for key, value in data.items())
    assert tomllib.loads(text) == data
    lines = key_lines(text)
    assert set(lines) == paths(data)
    rows = text.split("\n")
    assert all(
        quoted(path[-1]) in rows[line - 1] for path, line in lines.items() if isinstance(path[-1], str)
    )
