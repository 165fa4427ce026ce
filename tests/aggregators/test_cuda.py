"""Updates on a CUDA device: the same result there as on the CPU, but for rounding."""

from __future__ import annotations

import pytest
import torch

import aggregators
from aggregators.core import registry
from aggregators.core.rule import Needs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
RULES = registry.names(registry.RULES)
D = 300_001  # two chunks


def compare(rule, pre, dtype):
    X = torch.randn(11, D, generator=torch.Generator().manual_seed(1)).to(dtype)
    X[:2] *= 3
    pipeline = aggregators.build(rule, pre=pre, faults=0 if rule == "mean" else 2)
    names = pipeline.state_names([str(row) for row in range(11)])
    vectors = torch.randn(len(names), D, generator=torch.Generator().manual_seed(2))
    trusted = 4 if Needs.TRUSTED in pipeline.needs else None

    def run(device):
        return aggregators.aggregate(
            X.to(device),
            rule,
            pre,
            faults=pipeline.faults,
            seed=3,
            trusted=trusted,
            state=dict(zip(names, vectors.to(device), strict=True)),
        )

    here, there = run("cpu"), run("cuda")
    assert there.vector.device.type == "cuda"
    assert there.vector.dtype == dtype
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-3}
    torch.testing.assert_close(there.vector.cpu(), here.vector, **close)
    torch.testing.assert_close(there.weights.cpu(), here.weights, rtol=1e-3, atol=1e-6)
    assert there.selected == here.selected
    for name in names:
        torch.testing.assert_close(there.state[name].cpu(), here.state[name].float(), **close)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_rule_gives_the_same_on_a_device(rule, dtype):
    compare(rule, (), dtype)


@pytest.mark.parametrize("pre", [("arc", "nnm"), ("bucketing:2",), ("clipping:400.0",)], ids="-".join)
@pytest.mark.parametrize("rule", ["trimmed-mean", "geometric-median", "meamed", "caf"])
def test_a_composition_gives_the_same_on_a_device(rule, pre):
    compare(rule, pre, torch.float32)


def test_an_update_that_is_not_finite_is_rejected_on_a_device():
    X = torch.randn(7, 1_000, generator=torch.Generator().manual_seed(1)).cuda()
    X[2, 7] = torch.nan
    result = aggregators.aggregate(X, faults=2)
    assert result.treatment[2].startswith("rejected")
    assert bool(result.vector.isfinite().all())
