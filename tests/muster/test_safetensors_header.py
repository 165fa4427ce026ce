"""The header's parser refuses whatever the format, or our stricter reading of it, does not allow."""

import json
import struct
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from muster.model.safetensors_header import HEADER_BYTES_MAX, Entry, HeaderError, lay_out, parse, render

PROPERTY = settings(derandomize=True, database=None, deadline=None, max_examples=300)


def _file(header: Any, data: bytes = b"", *, length: int | None = None) -> memoryview:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return memoryview(struct.pack("<Q", len(text) if length is None else length) + text + data)


def _entry(start: int, stop: int, **changes: Any) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]} | changes


def test_reads_what_the_safetensors_library_writes() -> None:
    arrays = {
        "b": np.arange(3, dtype=np.int64),
        "a": np.ones((2, 2), np.float32),
        "z": np.ones((0, 3), np.float32),
    }
    body = safetensors.numpy.save(arrays, metadata={"key": "värde"})
    header = parse(memoryview(body))
    assert header.metadata == {"key": "värde"}
    assert {name: (e.dtype, e.shape) for name, e in header.entries.items()} == {
        "a": ("F32", (2, 2)),
        "b": ("I64", (3,)),
        "z": ("F32", (0, 3)),
    }
    entry = header.entries["b"]
    stored = body[header.data_start + entry.start : header.data_start + entry.stop]
    assert np.frombuffer(stored, np.int64).tolist() == [0, 1, 2]


def test_the_safetensors_library_reads_what_we_write() -> None:
    entries = lay_out([("x/ü", "F32", (2,)), ("empty", "I64", (0, 4)), ("scalar", "I64", ())])
    header = render({"m": '{"k": 1}'}, entries, size=1000)
    assert len(header) == 1024
    data = np.array([1.5, 2.5], np.float32).tobytes() + np.array(7, np.int64).tobytes()
    read = safetensors.numpy.load(header + data)
    assert read["x/ü"].tolist() == [1.5, 2.5]
    assert read["empty"].shape == (0, 4)
    assert read["scalar"] == 7
    assert dict(parse(memoryview(header + data)).entries) == entries


@pytest.mark.parametrize(
    ("file", "why"),
    [
        (memoryview(b""), "ends after 0 bytes"),
        (memoryview(b"\1\0\0"), "within the header's length"),
        (_file(b"{}x", length=2), "take 0 bytes, the file has 1"),
        (_file({}, length=100), "within a header of 100"),
        (_file({}, length=HEADER_BYTES_MAX + 1), "1048576 is the most"),
        (_file({}, length=2**64 - 1), "1048576 is the most"),
        (_file(b""), "does not begin with"),
        (_file(b" {}"), "does not begin with"),
        (_file(b"[]"), "does not begin with"),
        (_file(b"{} x"), "not JSON"),
        (_file(b'{"a": NaN}'), "not an object"),
        (_file(b'{"\xff": 1}'), "not UTF-8"),
        (_file(b'{"a":' + b"[" * 100_000), "not JSON"),
        (_file(b'{"a":' + b"9" * 100_000 + b"}"), "not JSON"),
        (
            _file(b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "a": {}}', b"1"),
            "key occurs twice",
        ),
        (
            _file(b'{"a": {"dtype": "U8", "dtype": "I8", "shape": [], "data_offsets": [0, 1]}}'),
            "key occurs twice",
        ),
        (_file({"__metadata__": []}), "metadata is not an object"),
        (_file({"__metadata__": {"a": 1}}), "not text"),
        (_file({"a": 3}), "is not an object"),
        (_file({"a": {"dtype": "U8", "shape": [1]}}), "of exactly"),
        (_file({"a": _entry(0, 1, more=1)}, b"1"), "of exactly"),
        (_file({"a": _entry(0, 1, dtype="U9")}, b"1"), "dtype"),
        (_file({"a": _entry(0, 1, dtype=[])}, b"1"), "dtype"),
        (_file({"a": _entry(0, 1, shape=[True])}, b"1"), "shape is not"),
        (_file({"a": _entry(0, 1, shape=[1.0])}, b"1"), "shape is not"),
        (_file({"a": _entry(0, 1, shape=[-1])}, b"1"), "shape is not"),
        (_file({"a": _entry(0, 1, shape=[1] * 65)}, b"1"), "shape is not"),
        (_file({"a": _entry(0, 1, shape=[2**64])}, b"1"), "shape is not"),
        (_file({"a": _entry(0, 1, shape=[2**62, 2**62])}, b"1"), "do not span"),
        (_file({"a": _entry(0, 1, data_offsets=[1, 0])}, b"1"), "offsets are not"),
        (_file({"a": _entry(0, 1, data_offsets=[0, 1, 1])}, b"1"), "offsets are not"),
        (_file({"a": _entry(0, 1, data_offsets=[-1, 0])}, b"1"), "offsets are not"),
        (_file({"a": _entry(0, 2, shape=[3])}, b"12"), "do not span"),
        (_file({"a": _entry(0, 2), "b": _entry(1, 3)}, b"123"), "overlaps"),
        (_file({"a": _entry(0, 2), "b": _entry(0, 2)}, b"12"), "overlaps"),
        (_file({"a": _entry(0, 2), "b": _entry(3, 4)}, b"1234"), "hole"),
        (_file({"a": _entry(1, 2)}, b"12"), "hole"),
        (_file({"a": _entry(0, 2)}, b"123"), "take 2 bytes, the file has 3"),
        (_file({"a": _entry(0, 2)}, b"1"), "take 2 bytes, the file has 1"),
    ],
)
def test_refuses(file: memoryview, why: str) -> None:
    with pytest.raises(HeaderError, match=why):
        parse(file)


def test_writers_stay_within_what_readers_take() -> None:
    with pytest.raises(HeaderError, match="1048576 is the most"):
        render({"m": "x" * HEADER_BYTES_MAX}, {})
    largest = render({}, {}, size=HEADER_BYTES_MAX)
    assert parse(memoryview(largest)).data_start == HEADER_BYTES_MAX
    for names in (["a", "a"], ["__metadata__"]):
        with pytest.raises(HeaderError, match="is taken"):
            lay_out([(name, "U8", ()) for name in names])


@PROPERTY
@given(data=st.data())
def test_mutilated_files_are_refused_or_still_consistent(data: st.DataObject) -> None:
    entries = lay_out([("a", "F32", (4, 2)), ("b", "U8", (5,)), ("c", "BF16", ())])
    whole = render({"k": "v"}, entries) + bytes(39)
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 8 * len(whole) - 1))
        changed[at // 8] ^= 1 << at % 8
    changed = changed[: data.draw(st.sampled_from([len(whole), len(whole) - 1, len(whole) // 2, 9]))]
    try:
        header = parse(memoryview(bytes(changed)))
    except HeaderError:
        return
    sizes = {"U8": 1, "I8": 1, "BF16": 2, "F16": 2, "I16": 2, "U16": 2, "F32": 4, "F64": 8}
    covered = 0
    for entry in header.entries.values():
        assert isinstance(entry, Entry)
        assert entry.stop - entry.start == sizes[entry.dtype] * int(np.prod(entry.shape))
        covered += entry.stop - entry.start
    assert header.data_start + covered == len(changed)
