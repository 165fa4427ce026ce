"""The contract of a blob store, held by the one on a disk and the one in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from muster.errors import StorageError, UsageError
from muster.files.blobs import BlobStore, FolderBlobStore, MemoryBlobStore
from muster.files.digests import digest_bytes

BODY = b"weights" * 100
DIGEST = digest_bytes(BODY)


@pytest.fixture(params=["folder", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlobStore]:
    if request.param == "folder":
        yield FolderBlobStore(tmp_path / "blobs")
        return
    store = MemoryBlobStore()
    yield store
    store.close()


async def _kept(store: BlobStore, body: bytes) -> str:
    path, digest = store.temporary(), digest_bytes(body)
    path.write_bytes(body)
    await store.adopt(path, digest)
    return digest


async def test_a_blob_is_found_once_it_is_adopted(blobs: BlobStore) -> None:
    path = blobs.temporary()
    path.write_bytes(BODY)
    assert not blobs.has(DIGEST)
    assert await blobs.adopt(path, DIGEST) == blobs.path(DIGEST)
    assert blobs.has(DIGEST)
    assert blobs.path(DIGEST).read_bytes() == BODY
    assert not path.exists()


async def test_adopting_twice_is_adopting_once(blobs: BlobStore) -> None:
    path = blobs.temporary()
    path.write_bytes(BODY)
    await blobs.adopt(path, DIGEST)
    await blobs.adopt(path, DIGEST)  # killed after the rename, asked again
    again = blobs.temporary()
    again.write_bytes(BODY)
    await blobs.adopt(again, DIGEST)
    assert blobs.path(DIGEST).read_bytes() == BODY
    assert not again.exists()


async def test_a_file_that_is_not_there_cannot_be_adopted(blobs: BlobStore) -> None:
    with pytest.raises(StorageError) as caught:
        await blobs.adopt(blobs.temporary(), DIGEST)
    assert caught.value.id == "storage.failed"
    assert not blobs.has(DIGEST)


async def test_remove_spares_those_who_have_it_open(blobs: BlobStore) -> None:
    path = blobs.temporary()
    path.write_bytes(BODY)
    with (await blobs.adopt(path, DIGEST)).open("rb") as file:
        blobs.remove(DIGEST)
        blobs.remove(DIGEST)
        assert not blobs.has(DIGEST)
        assert file.read() == BODY


async def test_sweep_removes_orphans_and_what_was_being_written(blobs: BlobStore) -> None:
    digests = [await _kept(blobs, body) for body in (b"kept", b"orphan", b"another")]
    half = blobs.temporary()
    half.write_bytes(b"half")
    assert blobs.sweep(keep={digests[0]}) == 3
    assert [blobs.has(digest) for digest in digests] == [True, False, False]
    assert blobs.path(digests[0]).read_bytes() == b"kept"
    assert not half.exists()


async def test_a_file_is_adopted_from_elsewhere(blobs: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "spool").write_bytes(BODY)
    await blobs.adopt(tmp_path / "spool", DIGEST)
    assert (await blobs.verified(DIGEST)).read_bytes() == BODY
    assert not (tmp_path / "spool").exists()


async def test_a_blob_that_has_changed_is_found_out_and_never_served(blobs: BlobStore) -> None:
    digest = await _kept(blobs, BODY)
    path = await blobs.verified(digest)
    path.write_bytes(b"other weights")
    with pytest.raises(StorageError) as caught:
        await blobs.verified(digest, afresh=True)
    assert caught.value.id == "blob.damaged"
    assert not blobs.has(digest)
    with pytest.raises(StorageError) as caught:
        blobs.verify(digest)
    assert caught.value.id == "blob.missing"


def test_nothing_is_left_of_what_was_in_memory() -> None:
    store = MemoryBlobStore()
    folder = store.temporary().parent
    folder.joinpath("half").write_bytes(b"half")
    store.close()
    assert not folder.exists()


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "a" * 63, f"{DIGEST}\n", "a/" * 32])
def test_a_name_that_is_no_digest_never_becomes_a_path(blobs: BlobStore, name: str) -> None:
    for call in (blobs.path, blobs.has, blobs.remove):
        with pytest.raises(UsageError) as caught:
            call(name)
        assert caught.value.id == "blob.digest_malformed"
