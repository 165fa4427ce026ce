"""The receiving file: what it refuses, what it holds after a kill, what a full disk does to it."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from muster.errors import MusterError, OffsetError, StorageError, TransferError
from muster.files.digests import CHUNK_BYTES, checksum, digest_bytes
from muster.seeds import derive_random
from muster.transfer import partial
from muster.transfer.partial import PartialBody
from protos.v1.tensors_pb2 import BlobHeader, Chunk

BODY = derive_random("partial").randbytes(5 * CHUNK_BYTES + 12345)
HEADER = BlobHeader(size_bytes=len(BODY), digest=digest_bytes(BODY))


def chunk_at(offset: int, size: int = CHUNK_BYTES, body: bytes = BODY) -> Chunk:
    data = body[offset : offset + size]
    return Chunk(offset=offset, data=data, crc32c=checksum(data))


async def write_all(body: PartialBody, end: int = len(BODY), size: int = CHUNK_BYTES) -> None:
    while body.offset < end:
        await body.write(chunk_at(body.offset, min(size, end - body.offset)))


async def refusal(body: PartialBody, chunk: Chunk) -> MusterError:
    offset = body.offset
    with pytest.raises(TransferError) as caught:
        await body.write(chunk)
    assert body.offset == offset
    return caught.value


@pytest.mark.parametrize("size", [CHUNK_BYTES, 100_003])
async def test_a_whole_body_is_complete_and_on_disk(tmp_path, size):
    body = PartialBody.open(tmp_path / "b", HEADER)
    await write_all(body, size=size)
    await body.complete()
    body.close()
    assert (tmp_path / "b").read_bytes() == BODY


async def test_an_empty_body_is_whole_at_once(tmp_path):
    body = PartialBody.open(tmp_path / "b", BlobHeader(size_bytes=0, digest=digest_bytes(b"")))
    await body.complete()
    body.close()


async def test_what_is_refused_changes_nothing(tmp_path):
    body = PartialBody.open(tmp_path / "b", HEADER)
    await body.write(chunk_at(0))
    for offset in (0, 5, 2 * CHUNK_BYTES):
        error = await refusal(body, chunk_at(offset))
        assert isinstance(error, OffsetError)
        assert (error.id, error.fields["offset"]) == ("transfer.offset", str(CHUNK_BYTES))
    flipped = chunk_at(CHUNK_BYTES)
    flipped.data = bytes([flipped.data[0] ^ 1]) + flipped.data[1:]
    assert (await refusal(body, flipped)).id == "transfer.checksum"
    assert (await refusal(body, Chunk(offset=CHUNK_BYTES))).id == "transfer.chunk_size"
    large = bytes(CHUNK_BYTES + 1)
    assert (
        await refusal(body, Chunk(offset=CHUNK_BYTES, data=large, crc32c=checksum(large)))
    ).id == "transfer.chunk_size"
    await write_all(body)
    more = Chunk(offset=len(BODY), data=b"x", crc32c=checksum(b"x"))
    assert (await refusal(body, more)).id == "transfer.oversize"
    await body.complete()
    body.close()


async def test_end_of_stream_is_not_the_end_of_the_body(tmp_path):
    body = PartialBody.open(tmp_path / "b", HEADER)
    await write_all(body, end=len(BODY) - 1)
    with pytest.raises(TransferError) as caught:
        await body.complete()
    assert caught.value.id == "transfer.truncated"
    assert caught.value.fields["offset"] == str(len(BODY) - 1)
    await write_all(body)
    await body.complete()
    body.close()


async def test_it_goes_on_where_it_was_closed(tmp_path):
    path = tmp_path / "b"
    random = derive_random("resume")
    while (body := PartialBody.open(path, HEADER)).offset < len(BODY):
        await write_all(body, end=min(len(BODY), body.offset + random.randrange(1, CHUNK_BYTES)), size=70_001)
        body.close()
    await body.complete()
    body.close()
    body = PartialBody.reopen(path)
    assert body.header == HEADER
    await body.complete()  # hashed anew from the disk
    body.close()


async def test_close_writes_what_was_taken(tmp_path):
    """A handler that is cancelled has no time to sync; still each attempt must get further than the last."""
    body = PartialBody.open(tmp_path / "b", HEADER)
    await body.write(chunk_at(0, size=1000))
    body.close()
    body.close()
    assert (tmp_path / "b").read_bytes() == BODY[:1000]


async def test_another_body_under_the_same_path_begins_anew(tmp_path):
    body = PartialBody.open(tmp_path / "b", HEADER)
    await write_all(body, end=CHUNK_BYTES)
    body.close()
    other = PartialBody.open(tmp_path / "b", BlobHeader(size_bytes=3, digest=digest_bytes(b"abc")))
    assert other.offset == 0
    await other.write(Chunk(offset=0, data=b"abc", crc32c=checksum(b"abc")))
    await other.complete()
    other.close()


async def test_a_body_with_another_digest_is_not_kept(tmp_path):
    """As after a power cut, or a sender that lies: each chunk is well, the whole is not."""
    path = tmp_path / "b"
    body = PartialBody.open(path, HEADER)
    await write_all(body, end=CHUNK_BYTES)
    body.close()
    with path.open("r+b") as file:
        file.write(b"\0" * 100)
    body = PartialBody.reopen(path)
    await write_all(body)
    with pytest.raises(TransferError) as caught:
        await body.complete()
    assert caught.value.id == "transfer.digest"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        PartialBody.reopen(path)


@pytest.mark.parametrize("digest", ["", "../x", "g" * 64])
def test_a_header_without_a_digest_is_refused(tmp_path, digest):
    with pytest.raises(TransferError) as caught:
        PartialBody.open(tmp_path / "b", BlobHeader(size_bytes=3, digest=digest))
    assert caught.value.id == "transfer.malformed_header"


async def test_a_full_disk_ends_this_body_and_frees_its_space(tmp_path):
    path = tmp_path / "b"
    other = PartialBody.open(tmp_path / "other", HEADER)
    PartialBody.open(path, HEADER).close()
    path.unlink()
    path.symlink_to("/dev/full")  # the kernel's own ENOSPC
    body = PartialBody.open(path, HEADER)
    with pytest.raises(StorageError) as caught:
        await write_all(body)
        await body.sync()
    body.close()
    assert caught.value.id == "storage.disk_full"
    assert "df -h" in caught.value.fix
    assert not path.is_symlink()
    await write_all(other)
    await other.complete()
    other.close()


def test_a_body_that_cannot_fit_is_refused_at_once(tmp_path):
    with pytest.raises(StorageError) as caught:
        PartialBody.open(tmp_path / "b", BlobHeader(size_bytes=1 << 60, digest=HEADER.digest))
    assert caught.value.id == "storage.disk_full"
    assert list(tmp_path.iterdir()) == []


async def test_a_failed_sync_gives_the_body_up(tmp_path, monkeypatch):
    """After a failed sync the kernel takes the lost pages for written: what is held cannot be trusted."""

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(partial, "_data_sync", fail)
    body = PartialBody.open(tmp_path / "b", HEADER)
    with pytest.raises(StorageError) as caught:
        await write_all(body)
        await body.sync()
    assert caught.value.id == "storage.failed"
    assert list(tmp_path.iterdir()) == []


async def test_a_slow_disk_holds_the_sender_and_not_the_event_loop(tmp_path, monkeypatch):
    held, turns = asyncio.Event(), 0
    real, release = os.pwrite, threading.Event()
    loop = asyncio.get_running_loop()

    def slow(fd: int, data: bytes, offset: int) -> int:
        loop.call_soon_threadsafe(held.set)
        assert release.wait(30)
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", slow)
    body = PartialBody.open(tmp_path / "b", HEADER)
    writer = asyncio.create_task(write_all(body))
    await held.wait()
    for _ in range(1000):  # the loop turns while the disk stands still
        await asyncio.sleep(0)
        turns += 1
    assert turns == 1000
    assert not writer.done()
    assert body.offset <= partial.BACKLOG_BYTES + CHUNK_BYTES
    release.set()
    await writer
    await body.complete()
    body.close()


KILLED = """
    import asyncio, os, signal, sys
    from pathlib import Path
    from muster.transfer.partial import PartialBody
    from muster.files.digests import checksum
    from protos.v1.tensors_pb2 import BlobHeader, Chunk

    async def main(path, source, size):
        data = Path(source).read_bytes()
        body = PartialBody.open(Path(path), BlobHeader.FromString(Path(source + ".header").read_bytes()))
        while body.offset < size:
            part = data[body.offset : body.offset + 300_000]
            await body.write(Chunk(offset=body.offset, data=part, crc32c=checksum(part)))
        await body.sync()
        await body.write(Chunk(offset=body.offset, data=data[body.offset:body.offset + 9],
                               crc32c=checksum(data[body.offset:body.offset + 9])))
        os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


async def test_a_killed_receiver_holds_what_it_had_synced(tmp_path: Path):
    source, path = tmp_path / "source", tmp_path / "b"
    source.write_bytes(BODY)
    (tmp_path / "source.header").write_bytes(HEADER.SerializeToString())
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(path), str(source), "3000000"]
    assert subprocess.run(command, check=False).returncode == -9  # noqa: ASYNC221
    body = PartialBody.reopen(path)
    assert body.offset == 3_000_000
    await write_all(body)
    await body.complete()
    body.close()
    assert path.read_bytes() == BODY
