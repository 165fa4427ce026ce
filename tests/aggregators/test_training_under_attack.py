"""The training that `benchmarks.robustness` measures: its gradients, its peers, and coarsely what comes out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks import robust_digits
from benchmarks.robust_digits import Trial


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_batched_gradients_are_those_of_autograd():
    data = robust_digits.load(0.5, 3)
    vector = robust_digits.initial(3)
    inputs, labels = data.inputs[:, 20:45], data.labels[:, 20:45]
    found = robust_digits.gradients(vector, inputs, labels)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    first, bias, second, last = torch.split(vector, list(robust_digits.SPLIT))
    with torch.no_grad():
        model[0].weight.copy_(first.view(64, 32).T)
        model[0].bias.copy_(bias)
        model[2].weight.copy_(second.view(32, 10).T)
        model[2].bias.copy_(last)
    for peer in range(robust_digits.PEERS):
        loss = nn.functional.cross_entropy(model(inputs[peer]), labels[peer])
        one, two, three, four = torch.autograd.grad(loss, list(model.parameters()))
        wanted = torch.cat([one.T.flatten(), two, three.T.flatten(), four])
        assert torch.allclose(found[peer], wanted, atol=1e-6)
    assert torch.equal(robust_digits.predict(vector, inputs[0]), model(inputs[0]).argmax(dim=1))


def test_peers_are_alike_or_not_as_asked():
    alike, apart, between = (robust_digits.load(similarity, 0).labels for similarity in (1.0, 0.0, 0.5))
    assert all(len(own.unique()) == 10 for own in alike)
    assert all(len(own.unique()) <= 3 for own in apart)
    assert len({tuple(own.tolist()) for own in apart}) == robust_digits.PEERS
    assert all(len(own.unique()) == 10 and own.bincount().max() > 0.5 * len(own) / 2 for own in between)


def accuracy(rule, attack, faults=3, similarity=1.0):
    trial = Trial(
        rule=rule, attack=attack, similarity=similarity, faults=faults, seed=0, steps=80, search_every=20
    )
    return trial.run()


@pytest.mark.parametrize("attack", ["optimal-ipm", "optimal-alie"])
def test_a_searched_attack_breaks_a_mean_and_not_a_robust_rule(attack):
    assert accuracy("mean", attack)["accuracy"] < 0.5
    assert accuracy("arc+nnm+trimmed-mean", attack)["accuracy"] > 0.85


def test_a_backdoor_is_seen_in_its_own_measure_alone():
    let_in, kept_out = accuracy("mean", "backdoor"), accuracy("trimmed-mean", "backdoor")
    assert let_in["accuracy"] > 0.8
    assert kept_out["accuracy"] > 0.8
    assert let_in["success"] > 0.8
    assert kept_out["success"] < 0.1


def test_a_rule_that_cannot_bear_so_many_refuses():
    assert "needs" in accuracy("trimmed-mean", "none", faults=10)
