"""Updates: written chunk by chunk, read with suspicion."""

import json
import math
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exchange.payload import BODY_BYTES_MAX, GroupSpec, Manifest, PayloadReader, PayloadWriter
from muster.errors import ConfigError, InternalError, StorageError, UpdateRejected
from muster.files.digests import digest_bytes
from muster.model.layout import CHUNK_COORDINATES

MANIFEST = Manifest(
    run_id="run-ä",
    round=3,
    assignment_id="a-1",
    base_digest="b" * 64,
    layout_digest="c" * 64,
    groups=(
        GroupSpec(name="params", codec="topk:0.01", size=2 * CHUNK_COORDINATES + 1),
        GroupSpec(name="control", codec="identity", size=5),
    ),
    scalars={"examples": 12, "steps": 4.5, "metric/loss": 0.25},
)
BODIES = {"params": [b"first", b"", b"the third"], "control": [b"\0" * 20]}


def _write(path: Path, manifest: Manifest = MANIFEST) -> Any:
    writer = PayloadWriter(path, manifest)
    writer.append("params", BODIES["params"][0])
    writer.append("control", BODIES["control"][0])
    for body in BODIES["params"][1:]:
        writer.append("params", body)
    return writer.finish()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "update"


def test_what_is_written_is_read(path: Path) -> None:
    info = _write(path)
    assert info.size_bytes == path.stat().st_size
    assert info.digest == digest_bytes(path.read_bytes())
    reader = PayloadReader(path)
    assert reader.manifest == MANIFEST
    chunks = {group: [reader.chunk(group, i) for i in range(len(b))] for group, b in BODIES.items()}
    reader.close()
    reader.close()
    assert {group: [bytes(body) for body in bodies] for group, bodies in chunks.items()} == BODIES
    assert all(body.readonly for bodies in chunks.values() for body in bodies)
    with pytest.raises(InternalError, match=r"update\.closed"):
        reader.chunk("params", 0)


def test_the_safetensors_library_reads_an_update(path: Path) -> None:
    _write(path)
    read = safetensors.numpy.load_file(path)
    assert {name: array.tobytes() for name, array in read.items()} == {
        "params/000000": b"first",
        "params/000001": b"",
        "params/000002": b"the third",
        "control/000000": b"\0" * 20,
    }


def test_scalars_need_not_be_finite(path: Path) -> None:
    _write(path, replace(MANIFEST, scalars={"metric/loss": math.nan, "metric/x": -math.inf}))
    scalars = PayloadReader(path).manifest.scalars
    assert math.isnan(scalars["metric/loss"])
    assert scalars["metric/x"] == -math.inf


@pytest.mark.parametrize("groups", [(), (GroupSpec(name="params", codec="identity", size=0),)])
def test_an_update_without_coordinates(path: Path, groups: tuple[GroupSpec, ...]) -> None:
    manifest = replace(MANIFEST, groups=groups)
    info = PayloadWriter(path, manifest).finish()
    assert PayloadReader(path).manifest == manifest
    assert info.size_bytes == path.stat().st_size


def test_the_header_costs_little(path: Path) -> None:
    """About 120 bytes a chunk beside the manifest: under 1 % of a chunk sent as top-1 %."""
    count = 400
    writer = PayloadWriter(
        path, replace(MANIFEST, groups=(GroupSpec(name="params", codec="x", size=count * CHUNK_COORDINATES),))
    )
    for _ in range(count):
        writer.append("params", b"")
    assert writer.finish().size_bytes < 120 * count + 1000


def test_bodies_of_the_largest_size_still_leave_the_header_its_place(path: Path) -> None:
    writer = PayloadWriter(
        path, replace(MANIFEST, groups=(GroupSpec(name="params", codec="x", size=2 * CHUNK_COORDINATES),))
    )
    body = bytes(BODY_BYTES_MAX)
    with pytest.raises(InternalError, match="bad_chunk"):
        writer.append("params", body + b"1")
    for _ in range(2):
        writer.append("params", body)
    info = writer.finish()
    assert info.size_bytes == path.stat().st_size
    assert len(PayloadReader(path).chunk("params", 1)) == BODY_BYTES_MAX


def test_every_chunk_once(path: Path) -> None:
    writer = PayloadWriter(path, MANIFEST)
    writer.append("control", b"x")
    with pytest.raises(InternalError, match="chunk 1 of 1 of 'control'"):
        writer.append("control", b"x")
    with pytest.raises(InternalError, match=r"update\.chunks_missing"):
        writer.finish()
    with pytest.raises(KeyError):
        writer.append("other", b"x")
    writer.close()
    with pytest.raises(UpdateRejected):
        PayloadReader(path)


def test_more_chunks_than_a_header_has_room_for(path: Path) -> None:
    huge = replace(MANIFEST, groups=(GroupSpec(name="params", codec="x", size=20_000 * CHUNK_COORDINATES),))
    with pytest.raises(ConfigError, match="20000 chunks do not fit"):
        PayloadWriter(path, huge)
    assert not path.exists()


def test_a_full_disk_is_a_storage_error() -> None:
    writer = PayloadWriter(Path("/dev/full"), MANIFEST)
    with pytest.raises(StorageError, match="no space left"):
        for _ in range(3):
            writer.append("params", bytes(1 << 20))
    writer.close()


def test_updates_need_no_torch() -> None:
    code = "import sys, exchange.payload; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- reading what nobody vouches for -----------------------------------------------------------------------------


def _rewrite(path: Path, manifest: Any = None, **changes: Any) -> None:
    """Rewrites the update at `path` with another manifest, or with entries added or (None) taken away."""
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    rows = json.loads(whole[8 : 8 + length])
    if manifest is not None:
        text = manifest if isinstance(manifest, str) else json.dumps(manifest)
        rows["__metadata__"]["muster.manifest"] = text
    for name, row in changes.items():
        rows[name] = row
    rows = {name: row for name, row in rows.items() if row is not None}
    text = json.dumps(rows).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])


def _refused(path: Path, why: str) -> None:
    with pytest.raises(UpdateRejected, match=why) as caught:
        PayloadReader(path)
    assert caught.value.id == "update.malformed"


def test_truncated_files_and_trailing_bytes(path: Path) -> None:
    _write(path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 13):
        path.write_bytes(whole[:size])
        _refused(path, "cannot be read")
    path.write_bytes(whole + b"\0")
    _refused(path, "the file has")


def _manifest(**changes: Any) -> dict[str, Any]:
    return json.loads(MANIFEST.to_json()) | changes


GROUP = {"name": "params", "codec": "x", "size": 1}


@pytest.mark.parametrize(
    ("manifest", "why"),
    [
        ("", "not JSON"),
        ("[]", "an object of exactly"),
        ({}, "an object of exactly"),
        (_manifest(more=1), "an object of exactly"),
        (_manifest(run_id=3), "printable text"),
        (_manifest(run_id="a\nb"), "printable text"),
        (_manifest(run_id="\ud800"), "printable text"),
        (_manifest(assignment_id="x" * 257), "printable text"),
        (_manifest(round=-1), "natural number"),
        (_manifest(round=1.0), "natural number"),
        (_manifest(round=True), "natural number"),
        (_manifest(round=2**63), "natural number"),
        (_manifest(groups={}), "a list of at most"),
        (_manifest(groups=[3]), "an object of exactly"),
        (_manifest(groups=[GROUP | {"more": 1}]), "an object of exactly"),
        (_manifest(groups=[GROUP | {"size": 10**18}]), "not as many as its groups need"),
        (_manifest(groups=[GROUP | {"size": -1}]), "natural number"),
        (_manifest(groups=[GROUP, GROUP]), "a group twice"),
        (_manifest(groups=[GROUP] * 65), "a list of at most"),
        (_manifest(groups=[GROUP | {"size": 4 * CHUNK_COORDINATES}]), "chunk 3 of group 'params' is missing"),
        (
            _manifest(groups=[GROUP | {"name": "other", "size": 4 * CHUNK_COORDINATES}]),
            "chunk 0 of group 'other'",
        ),
        (_manifest(scalars=[]), "at most 256 scalars"),
        (_manifest(scalars={f"metric/{i}": 1 for i in range(257)}), "at most 256 scalars"),
        (_manifest(scalars={"a": "1"}), "not a number"),
        (_manifest(scalars={"a": True}), "not a number"),
        (_manifest(scalars={"a": 10**400}), "out of range"),
        (_manifest(scalars={"a\0": 1}), "printable text"),
        (MANIFEST.to_json()[:-1] + ',"round":3}', "key occurs twice"),
    ],
)
def test_manifests_that_are_none(path: Path, manifest: Any, why: str) -> None:
    _write(path)
    _rewrite(path, manifest)
    _refused(path, why)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"params/000001": None}, "not as many"),
        ({"more": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}, "not as many"),
        (
            {"params/000001": {"dtype": "I8", "shape": [0], "data_offsets": [0, 0]}},
            "chunk 1 of group 'params'",
        ),
        (
            {"params/000001": {"dtype": "U8", "shape": [0, 1], "data_offsets": [0, 0]}},
            "chunk 1 of group 'params'",
        ),
        ({"params/000002": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}}, "overlaps"),
        ({"__metadata__": {}}, "metadata is not exactly"),
        ({"__metadata__": {"muster.manifest": "{}", "x": ""}}, "metadata is not exactly"),
    ],
)
def test_chunks_other_than_the_manifests(path: Path, changes: dict[str, Any], why: str) -> None:
    _write(path)
    _rewrite(path, **changes)
    _refused(path, why)


@settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_flipped_bits_are_refused_or_stay_inside_the_file(path: Path, data: st.DataObject) -> None:
    _write(path)
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 8 * len(whole) - 1))
        whole[at // 8] ^= 1 << at % 8
    path.write_bytes(whole)
    try:
        reader = PayloadReader(path)
    except UpdateRejected:
        return
    total = sum(
        len(reader.chunk(group.name, i)) for group in reader.manifest.groups for i in range(group.chunk_count)
    )
    assert total == sum(len(body) for bodies in BODIES.values() for body in bodies)
    reader.close()
