"""Bodies that nobody vouches for: each decodes to something finite or raises DecodeError, and nothing else."""

import struct
from collections.abc import Callable
from random import Random

import pytest
import torch

import compressors

SPELLINGS = [
    *("fp16", "int8:stochastic", "e4m3", "int4", "e3m0", "nf4", "sign"),
    *("qsgd:1", "qsgd:3", "qsgd:20", "qsgd:127", "terngrad", "natural"),
]
SIZE = 701  # whole blocks and an odd part
Decode = Callable[[str, bytes, int], torch.Tensor | None]  # see conftest


def _body(spelling: str, size: int = SIZE) -> bytes:
    return compressors.build(spelling).encode(
        torch.randn(size, generator=torch.Generator().manual_seed(3)), 0
    )


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_any_other_length_is_refused(decode: Decode, spelling: str) -> None:
    body = _body(spelling)
    assert decode(spelling, body, SIZE) is not None
    for cut in range(len(body)):
        assert decode(spelling, body[:cut], SIZE) is None
    for extra in (b"\0", b"\0" * 6, body):
        assert decode(spelling, body + extra, SIZE) is None
    for size in (0, 1, 512, SIZE - 8, SIZE + 8, SIZE + 512, 1 << 18):
        assert decode(spelling, body, size) is None


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_flipped_bits_never_crash(decode: Decode, spelling: str) -> None:
    body, random = _body(spelling), Random(5)
    refused = 0
    for _ in range(400):
        flipped = bytearray(body)
        for _ in range(random.randint(1, 8)):
            at = random.randrange(8 * len(body))
            flipped[at // 8] ^= 1 << at % 8
        refused += decode(spelling, bytes(flipped), SIZE) is None
    assert refused < 400


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("size", [1, 5, 65, 321, SIZE])
def test_random_bytes_never_crash(decode: Decode, spelling: str, size: int) -> None:
    length, random = len(_body(spelling, size)), Random(size)
    for _ in range(200):
        decode(spelling, random.randbytes(length), size)
        decode(spelling, bytes([random.randrange(256)]) * length, size)
        decode(spelling, random.randbytes(random.randrange(2 * length)), size)


@pytest.mark.parametrize("spelling", ["e4m3", "int4", "e3m0", "nf4", "sign", "terngrad"])
@pytest.mark.parametrize("scale", [0x7F80, 0x7FC0, 0x7FFF, 0xFF80, 0xFFC0, 0xBF80, 0x8000])
@pytest.mark.parametrize("block", [0, 2])
def test_scales_that_are_none_are_refused(decode: Decode, spelling: str, scale: int, block: int) -> None:
    body = bytearray(_body(spelling))
    struct.pack_into("<H", body, 2 * block, scale)
    assert decode(spelling, bytes(body), SIZE) is None
    struct.pack_into("<H", body, 2 * block, 0x7F7F)  # large, but finite
    assert decode(spelling, bytes(body), SIZE) is not None


@pytest.mark.parametrize("norm", [float("nan"), float("inf"), -float("inf"), -1.0, 3e38])
@pytest.mark.parametrize("spelling", ["int8:stochastic", "qsgd:1", "qsgd:20"])
def test_float_scales_that_are_none_are_refused(decode: Decode, spelling: str, norm: float) -> None:
    body = bytearray(_body(spelling))
    struct.pack_into("<f", body, 4, norm)
    assert decode(spelling, bytes(body), SIZE) is None


def _with_last_byte(decode: Decode, spelling: str, byte: int, size: int = SIZE) -> torch.Tensor | None:
    return decode(spelling, _body(spelling, size)[:-1] + bytes([byte]), size)


@pytest.mark.parametrize("spelling", ["int4", "e3m0"])
def test_the_index_without_a_level_is_refused(decode: Decode, spelling: str) -> None:
    for byte in (0x00, 0x80, 0x08):
        assert _with_last_byte(decode, spelling, byte) is None
    assert _with_last_byte(decode, spelling, 0x81) is not None
    assert _with_last_byte(decode, "nf4", 0x00) is not None


def test_codes_that_are_not_numbers_are_refused(decode: Decode) -> None:
    assert _with_last_byte(decode, "e4m3", 0x7F) is None
    assert _with_last_byte(decode, "e4m3", 0xFF) is None
    assert _with_last_byte(decode, "e4m3", 0x7E) is not None
    assert _with_last_byte(decode, "terngrad", 243) is None
    assert _with_last_byte(decode, "terngrad", 242) is not None
    for half in (0x7C, 0xFC, 0x7E):
        assert _with_last_byte(decode, "fp16", half) is None
    assert _with_last_byte(decode, "fp16", 0x7B) is not None


def test_levels_above_the_largest_are_refused(decode: Decode) -> None:
    # One coordinate has one bit in each plane, each in a byte of its own.
    norm = struct.pack("<f", 1.0)
    for levels, planes in ((1, 2), (3, 3), (20, 6), (127, 8)):
        for code in range(1 << planes):
            body = norm + bytes(code >> plane & 1 for plane in range(planes))
            out = decode(f"qsgd:{levels}", body, 1)
            if code > 2 * levels:
                assert out is None
            else:
                assert out is not None
                assert float(out[0]) == pytest.approx((code - levels) / levels)


@pytest.mark.parametrize("exponent", [-32768, -127, 113, 32767])
def test_fp16_refuses_exponents_that_no_encoder_writes(decode: Decode, exponent: int) -> None:
    assert decode("fp16", struct.pack("<h", exponent) + bytes(2 * SIZE), SIZE) is None


@pytest.mark.parametrize("exponent", [-126, 112])
def test_fp16_stays_finite_at_the_ends(decode: Decode, exponent: int) -> None:
    out = decode("fp16", struct.pack("<h", exponent) + struct.pack("<H", 0x7BFF) * SIZE, SIZE)
    assert out is not None
    assert float(out[0]) == 65504 * 2.0**exponent


@pytest.mark.parametrize("base", [128, 200, 255])
def test_natural_refuses_a_base_that_is_too_large(decode: Decode, base: int) -> None:
    assert decode("natural", bytes([base]) + _body("natural")[1:], SIZE) is None
    assert decode("natural", bytes([127]) + b"\x7f" * SIZE, SIZE) is not None


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_any_buffer_will_do(decode: Decode, spelling: str) -> None:
    body = _body(spelling)
    wanted, shifted = decode(spelling, body, SIZE), b"\0" + body
    assert wanted is not None
    for held in (memoryview(body), memoryview(bytearray(body)), memoryview(shifted)[1:]):
        out = torch.empty(SIZE)
        compressors.build(spelling).decode(held, out)
        assert torch.equal(out, wanted)
