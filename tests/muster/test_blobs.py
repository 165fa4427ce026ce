from __future__ import annotations

import pytest

from muster.errors import StorageError, UsageError
from muster.files.blobs import BlobStore
from muster.files.digests import digest_bytes

BODY = b"weights" * 100
DIGEST = digest_bytes(BODY)


async def test_a_blob_is_found_once_it_is_adopted(tmp_path):
    store = BlobStore(tmp_path / "blobs")
    path = store.temporary()
    path.write_bytes(BODY)
    assert not store.has(DIGEST)
    assert await store.adopt(path, DIGEST) == store.path(DIGEST)
    assert store.has(DIGEST)
    assert store.path(DIGEST).read_bytes() == BODY
    assert not path.exists()


async def test_adopting_twice_is_adopting_once(tmp_path):
    store = BlobStore(tmp_path)
    path = store.temporary()
    path.write_bytes(BODY)
    await store.adopt(path, DIGEST)
    await store.adopt(path, DIGEST)  # killed after the rename, asked again
    again = store.temporary()
    again.write_bytes(BODY)
    await store.adopt(again, DIGEST)
    assert store.path(DIGEST).read_bytes() == BODY
    assert not again.exists()


async def test_a_file_that_is_not_there_cannot_be_adopted(tmp_path):
    store = BlobStore(tmp_path)
    with pytest.raises(StorageError) as caught:
        await store.adopt(store.temporary(), DIGEST)
    assert caught.value.id == "storage.failed"
    assert not store.has(DIGEST)


async def test_remove_spares_those_who_have_it_open(tmp_path):
    store = BlobStore(tmp_path)
    path = store.temporary()
    path.write_bytes(BODY)
    with (await store.adopt(path, DIGEST)).open("rb") as file:
        store.remove(DIGEST)
        store.remove(DIGEST)
        assert not store.has(DIGEST)
        assert file.read() == BODY


async def test_sweep_removes_orphans_and_what_was_being_written(tmp_path):
    store = BlobStore(tmp_path)
    digests = []
    for text in (b"kept", b"orphan", b"another"):
        path = store.temporary()
        path.write_bytes(text)
        digests.append(digest_bytes(text))
        await store.adopt(path, digests[-1])
    store.temporary().write_bytes(b"half")
    assert BlobStore(tmp_path).sweep(keep={digests[0]}) == 3
    assert [store.has(digest) for digest in digests] == [True, False, False]
    assert [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()] == [b"kept"]


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "a" * 63, f"{DIGEST}\n", "a/" * 32])
def test_a_name_that_is_no_digest_never_becomes_a_path(tmp_path, name):
    store = BlobStore(tmp_path)
    for call in (store.path, store.has, store.remove):
        with pytest.raises(UsageError) as caught:
            call(name)
        assert caught.value.id == "blob.digest_malformed"
