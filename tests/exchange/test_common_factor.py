"""A factor that all senders of a round share: what it goes with, and what lies in its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import compressors
from coordinator.submission.checks import check_spec
from exchange.contexts import ChunkContexts
from exchange.factors import CommonFactor, NextFactor
from exchange.recipe import AggregationRefused
from muster.errors import ConfigError, StorageError
from muster.model.layout import CHUNK_COORDINATES, ParameterLayout, TensorSpec
from muster.spec.model import RunSpec

UP = "powersgd:2:common"
LAYOUT = ParameterLayout(
    tensors=(
        TensorSpec(name="wide", shape=(600, 700), dtype="F32"),  # goes on in the second chunk
        TensorSpec(name="bias", shape=(50,), dtype="F32"),
    )
)


@pytest.mark.parametrize(
    "compression",
    [
        {"up": UP, "feedback": "ef14"},
        {"up": UP, "feedback": "ef21", "down": "int8"},
        {"up": UP, "feedback": "none", "down": "powersgd:2"},
    ],
)
def test_settings_that_go_together(make_spec: Callable[..., RunSpec], compression: dict[str, Any]) -> None:
    check_spec(make_spec(compression=compression))


@pytest.mark.parametrize(
    ("compression", "said"),
    [
        ({"up": "int8", "down": UP}, "down there is one sender"),
        ({"up": f"{UP}+zstd"}, "that one goes alone, powersgd:4:common"),
        ({"up": f"topk:0.1+{UP}"}, "that one goes alone"),
        ({"up": f"int8|{UP}"}, "that one goes alone"),
        ({"up": UP, "down": "replay"}, "are read with a factor, and compression.down replay has none"),
    ],
)
def test_settings_that_do_not_are_refused(
    make_spec: Callable[..., RunSpec], compression: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match="the run spec asks for what cannot be done here") as caught:
        check_spec(make_spec(compression=compression, aggregation={"rule": "mean"}))
    assert said in str(caught.value)


def test_the_next_factor_spans_what_the_step_did(tmp_path: Path) -> None:
    """Over two versions and two chunks: first the left sides of what the step was along the right ones, then back."""
    steps = [torch.randn(LAYOUT.size, generator=torch.Generator().manual_seed(version)) for version in (0, 1)]
    present = CommonFactor(compressors.build(UP), LAYOUT, 0, None)
    for version, step in enumerate(steps):
        contexts = ChunkContexts(layout=LAYOUT, base_digest="b" * 64, round=version + 1)
        bounds = [LAYOUT.chunk_bounds(index) for index in range(LAYOUT.chunk_count)]
        asked = present.codec
        assert asked is not None
        bound = [asked.at(present.at(contexts.at(index), index)) for index in range(LAYOUT.chunk_count)]
        wanted = [
            codec.exchange(stop - start).next_factor(step[start:stop])
            for codec, (start, stop) in zip(bound, bounds, strict=True)
        ]
        path = tmp_path / f"factor{version}"
        following = NextFactor(present, contexts, path)
        base = torch.ones(LAYOUT.size)
        for start, stop in bounds:
            following.take(base[start:stop], base[start:stop] + step[start:stop])
        following.finish()
        following.close()
        present.close()
        written = np.fromfile(path, dtype="<f4")
        np.testing.assert_allclose(written, torch.cat(wanted).numpy(), atol=1e-5)
        present = CommonFactor(compressors.build(UP), LAYOUT, version + 1, path)
        place = present.at(contexts.at(1), 1)
        assert place.turn == (version + 1) % 2
        assert place.factor is not None
        torch.testing.assert_close(place.factor, wanted[1], atol=1e-5, rtol=0)
    present.close()
    assert LAYOUT.size > CHUNK_COORDINATES


def test_a_step_too_large_for_a_factor_and_a_factor_that_is_gone(tmp_path: Path) -> None:
    contexts = ChunkContexts(layout=LAYOUT, base_digest="b" * 64, round=1)
    following = NextFactor(
        CommonFactor(compressors.build(UP), LAYOUT, 0, None), contexts, tmp_path / "factor"
    )
    base = torch.zeros(CHUNK_COORDINATES)
    with pytest.raises(AggregationRefused, match="too large for the factor"):
        following.take(base, base + 3e38)
    following.close()
    with pytest.raises(StorageError, match="the factor that all updates against version 3 share is not here"):
        CommonFactor(compressors.build(UP), LAYOUT, 3, None)
