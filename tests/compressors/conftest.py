"""One thread: on a busy machine, threads that wait for each other over small chunks cost time. And hostile bodies."""

from collections.abc import Callable, Iterator

import pytest
import torch

import compressors


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def decode() -> Callable[[str, bytes, int], torch.Tensor | None]:
    """Decodes a body that nobody vouches for to a chunk of this size.

    Gives the chunk, which is finite unless the codec is one that lets such values through; None if the body was
    refused, and then the output is untouched.
    """

    def decode(spelling: str, body: bytes, size: int) -> torch.Tensor | None:
        out = torch.full((size,), 7.0)
        try:
            compressors.build(spelling).decode(body, out)
        except compressors.DecodeError:
            assert torch.equal(out, torch.full((size,), 7.0))
            return None
        assert spelling.partition("+")[0] in {"identity", "bf16"} or bool(torch.isfinite(out).all())
        return out

    return decode
