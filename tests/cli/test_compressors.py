"""`muster compressor`: what is installed, in words and as JSON."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent


def test_list_tells_codecs_and_feedbacks(muster: Callable[..., Any]) -> None:
    said = muster("compressor", "list")
    assert said.code == 0
    rows = {line.split()[0]: line.split() for line in said.out.splitlines() if line}
    assert rows["CODEC"][:5] == ["CODEC", "BITS", "SMALLER", "LOSES", "BIAS"]
    assert rows["topk:0.01"][:5] == ["topk:0.01", "0.481", "66.6x", "0.99", "yes"]
    assert rows["identity"][:5] == ["identity", "32", "1x", "0", "no"]
    assert rows["sign"][3] == "<1"  # contractive, if barely
    assert rows["randk:0.01"][3:5] == ["99", "no"]
    assert rows["one-byte:16"][2:5] == ["65,536x", "-", "yes"]
    assert rows["ef21"][:3] == ["ef21", "estimate", "estimate"]
    data = {(each["kind"], each["name"]): each for each in muster("compressor", "list", "--json").data}
    assert data["codec", "topk"]["delta"] == pytest.approx(0.01, rel=1e-3)
    assert data["codec", "topk"]["omega"] is None
    assert data["feedback", "ef21"]["receiver_state"] == ["estimate"]
    assert all(each["spelling"] in rows for each in data.values())


@pytest.mark.parametrize(
    ("spelling", "wanted"),
    [
        ("topk", ["topk:0.01, a codec", "contractive  yes: ", "delta = 0.01", "unbiased     no"]),
        ("int8", ["at most 266,240 bytes for 2^18 coordinates: 8.125 bits each", "delta = 1 - 0.004"]),
        ("natural", ["omega = 0.125", "source       Horvath et al. 2022"]),
        ("topk:0.02+int8", ["Composed of topk:0.02, int8 and auto.", "auto       The gaps", "a codec"]),
        ("int8|int4", ["For each layer int8 or int4.", "int4  Block int4"]),
        ("ef14", ["ef14, a feedback", "a vector as long as the model: residual", "momentum  none"]),
        ("econtrol", ["2 vectors as long as the model: estimate and error", "the mean alone"]),
        ("dgc:0.5", ["dgc:0.5, a feedback", "server's optimizer must have none", "which looks", "clip=1.0"]),
        ("ef21", ["towards the update.\n\n    sender      m = C(x - h);  h += m\n    receiver    H += "]),
        ("none", ["sender    keeps nothing", "receiver  keeps nothing"]),
    ],
)
def test_show(muster: Callable[..., Any], spelling: str, wanted: list[str]) -> None:
    said = muster("compressor", "show", spelling)
    assert said.code == 0, said.err
    for each in wanted:
        assert each in said.out
    assert "\n\n\n" not in said.out
    assert said.out.splitlines()[1] == ""
    assert muster("compressor", "show", spelling, "--json").data["kind"] in said.out


@pytest.mark.parametrize(
    ("spelling", "why"),
    [
        ("topkk", "there is no codec 'topkk' (did you mean 'topk'"),
        ("ef22", "there is no error feedback 'ef22' (did you mean 'ef21'"),
        ("topk:2", "topk keeps a fraction above 0 and up to 1, not 2.0"),
        ("topk:0.1+rise", "there is no codec 'rise'"),
    ],
)
def test_what_is_not_there(muster: Callable[..., Any], spelling: str, why: str) -> None:
    said = muster("compressor", "show", spelling, "--json")
    unknown = muster("aggregator", "show", "krumm", "--json")
    assert said.code == unknown.code == 1
    assert said.data["error"]["id"] == "compressor.not_found"
    assert why in said.data["error"]["message"]


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("arguments", [["list"], ["show", "topk:0.01+int8+zstd"]])
def test_it_fits_the_terminal_and_cuts_nothing_off(columns: int, arguments: list[str], at_home: Path) -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "compressor", *arguments, "--no-color"],
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=follower,
        cwd=ROOT,
        env={**os.environ, "TERM": "dumb", "COLUMNS": str(columns)},
    )
    os.close(follower)
    seen = b""
    while True:
        try:
            block = os.read(leader, 65536)
        except OSError:  # Linux's way to say that the other side has closed
            break
        seen += block
        if not block:
            break
    os.close(leader)
    assert process.wait(timeout=20) == 0
    lines = seen.decode().splitlines()
    assert max(len(line) for line in lines) <= columns
    assert "…" not in seen.decode()
