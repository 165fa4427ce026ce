"""Attacks: what each sends, by its formula, whatever the chunks; what it refuses."""

from __future__ import annotations

import pytest
import torch

import aggregators
from aggregators import attacks
from aggregators.core import registry

HONEST = torch.randn(6, 501, generator=torch.Generator().manual_seed(2)) + 0.4
NAMES = [
    "alie", "anti-cge", "backdoor", "fang", "gaussian", "infinity", "ipm", "label-flip", "mimic", "min-max",
    "min-sum", "nan", "online-mimic", "optimal-alie", "optimal-ipm", "optimal-sign-flip", "sign-flip",
]  # fmt: skip


class Chunks:
    """A source that gives every chunk in the same memory."""

    def __init__(self, matrix, chunk):
        self.matrix, self.chunk = matrix, chunk
        self.n, self.size = matrix.shape

    def chunks(self):
        room = torch.empty(self.n * self.chunk)
        for start in range(0, self.size, self.chunk):
            columns = self.matrix[:, start : start + self.chunk]
            room.fill_(torch.nan)
            yield start, room[: columns.numel()].view(columns.shape).copy_(columns)


def forged(name, honest=HONEST, chunk=100, **options):
    """Chunk by chunk, last chunk first."""
    before = honest.clone()
    forgery = attacks.build(name, **options).plan(Chunks(honest, chunk), copies=2, seed=5)
    out = torch.full((honest.shape[1],), 7.0)
    for start in reversed(range(0, honest.shape[1], chunk)):
        forgery.forge(honest[:, start : start + chunk], out[start : start + chunk], start)
    assert torch.equal(honest, before)
    return out


def test_formulas():
    wide = HONEST.double()
    mean, spread = wide.mean(dim=0), wide.std(dim=0, correction=1)
    norms = wide.norm(dim=1).sort(descending=True).values
    wanted = {
        ("sign-flip", ()): -mean,
        ("sign-flip", (("scale", 10),)): -10 * mean,
        ("ipm", ()): -0.1 * mean,
        ("ipm", (("epsilon", 2.5),)): -2.5 * mean,
        ("alie", ()): mean + 1.5 * spread,
        ("alie", (("z", -0.5),)): mean - 0.5 * spread,
        ("label-flip", ()): mean,
        ("backdoor", (("boost", 3.0),)): 3 * mean,
        ("mimic", (("worker", 4),)): wide[4],
        ("anti-cge", ()): -mean / mean.norm() * norms[1] * (1 - 1e-4),
    }
    for (name, options), value in wanted.items():
        assert torch.allclose(forged(name, **dict(options)).double(), value, atol=1e-5), name
    assert bool(forged("nan").isnan().all())
    assert bool((forged("infinity") == torch.inf).all())


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("optimal")])
def test_chunks_make_no_difference(name):
    if name == "nan":
        return
    assert torch.allclose(forged(name), forged(name, chunk=501), atol=1e-5)
    assert torch.equal(forged(name, chunk=501), attacks.forge(name, HONEST, copies=2, seed=5))


def test_one_that_attacks_alone_turns_its_own_update():
    assert torch.equal(forged("sign-flip", HONEST[:1]), -HONEST[0])
    assert torch.equal(forged("label-flip", HONEST[:1]), HONEST[0])
    with pytest.raises(aggregators.RuleError, match="alie has to see 2 or more updates, and it sees 1"):
        forged("alie", HONEST[:1])
    with pytest.raises(aggregators.RuleError, match="sign-flip has to see 1 or more updates"):
        forged("sign-flip", HONEST[:0])
    with pytest.raises(aggregators.RuleError, match="worker is 6, and 6 updates are seen"):
        forged("mimic", worker=6)


def test_gaussian_noise_is_as_drawn():
    wide = torch.zeros(1, 200_000)
    noise = forged("gaussian", wide, chunk=70_000, mean=3.0, std=2.0)
    assert abs(float(noise.mean()) - 3) < 0.02
    assert abs(float(noise.std()) - 2) < 0.02
    assert abs(float(torch.corrcoef(torch.stack([noise[:65_536], noise[65_536:131_072]]))[0, 1])) < 0.02
    one, other = (attacks.forge("gaussian", wide, seed=seed) for seed in (1, 2))
    assert not torch.equal(one, other)
    assert torch.equal(one, attacks.forge("gaussian", wide, seed=1))


@pytest.mark.parametrize("direction", ["std", "sign", "mean"])
@pytest.mark.parametrize("name", ["min-max", "min-sum"])
def test_as_far_out_as_the_bound_lets(name, direction):
    wide = HONEST.double()
    mean = wide.mean(dim=0)
    p = {"std": wide.std(dim=0, correction=1), "sign": mean.sign(), "mean": mean}[direction]
    between = torch.cdist(wide, wide)

    def within(gamma):
        out = (mean - gamma * p - wide).norm(dim=1)
        if name == "min-max":
            return bool(out.max() <= between.max())
        return bool(out.square().sum() <= between.square().sum(dim=1).max())

    off = mean - forged(name, direction=direction).double()
    gamma = float(off @ p / (p @ p))
    assert torch.allclose(off, gamma * p, atol=1e-5)
    assert gamma > 0.01
    assert within(gamma * 0.9999)
    assert not within(gamma * 1.0001)


def test_identical_updates_leave_no_room():
    same = HONEST[:1].expand(4, -1).contiguous()
    for name in ("alie", "min-max", "min-sum", "online-mimic"):
        assert torch.allclose(forged(name, same), same[0], atol=1e-5)
    assert torch.equal(forged("anti-cge", torch.zeros(3, 8)), torch.zeros(8))


def test_fang_is_just_outside_against_the_mean():
    honest = torch.tensor([[1.0, -1.0, -4.0, 2.0, 0.0], [3.0, 5.0, -2.0, -5.0, 0.0]])
    low = torch.tensor([0.5, -2.0, -2.0, 2.0, 0.0])
    high = torch.tensor([1.0, -1.0, -1.0, 4.0, 0.0])
    for seed in range(20):
        out = attacks.forge("fang", honest, seed=seed)
        assert bool(((out >= low) & (out <= high)).all())
    assert not torch.equal(attacks.forge("fang", HONEST, seed=1), attacks.forge("fang", HONEST, seed=2))


def test_online_mimic_follows_the_direction_of_the_spread():
    # One peer stands out along a fixed axis in every round, more or less; the noise has no axis.
    generator = torch.Generator().manual_seed(3)
    axis = torch.nn.functional.normalize(torch.randn(300, generator=generator), dim=0)
    memory = attacks.Memory()
    copied = []
    for number in range(30):
        honest = 1.0 + 0.02 * torch.randn(8, 300, generator=generator)
        honest[5] += axis * (0.3 + number % 3)
        out = attacks.forge("online-mimic", honest, memory=memory)
        (row,) = (i for i in range(8) if torch.equal(honest[i], out))
        copied.append(row)
    assert memory.rounds == 30
    assert memory.vector is not None
    assert float(memory.vector.norm()) == pytest.approx(1.0, abs=1e-4)
    assert float(memory.vector @ axis) > 0.98
    assert set(copied) == {5}


def test_online_mimic_begins_with_the_top_component():
    centred = HONEST.double() - HONEST.double().mean(dim=0)
    top = torch.linalg.svd(centred, full_matrices=False).Vh[0]
    memory = attacks.Memory()
    out = attacks.forge("online-mimic", HONEST, memory=memory)
    assert memory.vector is not None
    assert abs(float(memory.vector.double() @ top)) == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(out, HONEST[int((HONEST @ memory.vector).argmax())])
    # A second round, by its formula.
    second = HONEST.flip(1)
    z = memory.vector.double()
    away = second.double() - second.double().mean(dim=0)
    step = away.T @ (away @ z)
    wanted = torch.nn.functional.normalize(z + step / step.norm(), dim=0)
    attacks.build("online-mimic").plan(Chunks(second, 100), memory=memory)
    assert torch.allclose(memory.vector.double(), wanted, atol=1e-5)


def test_labels_are_flipped_and_others_left_alone():
    inputs = torch.rand(2, 3)
    targets = torch.tensor([[0, 9, 4], [5, -100, 10]])
    same, flipped = attacks.build("label-flip").poison(inputs, targets, 10)
    assert same is inputs
    assert flipped.tolist() == [[9, 0, 5], [4, -100, 10]]
    assert targets.tolist() == [[0, 9, 4], [5, -100, 10]]
    assert flipped.dtype == targets.dtype
    small = torch.tensor([0, 9], dtype=torch.uint8)
    assert attacks.build("label-flip").poison(inputs, small, 10)[1].tolist() == [9, 0]
    assert torch.equal(attacks.build("sign-flip").poison(inputs, targets, 10)[1], targets)
    with pytest.raises(aggregators.RuleError, match="class indices"):
        attacks.build("label-flip").poison(inputs, torch.rand(3), 10)
    with pytest.raises(aggregators.RuleError, match="at least two classes"):
        attacks.build("label-flip").poison(inputs, targets, 1)


@pytest.mark.parametrize("shape", [(40, 8), (40, 3, 8, 8)])
def test_a_backdoor_marks_and_relabels_a_share(shape):
    backdoor = attacks.build("backdoor", target=7, share=0.25, patch=2, value=9.0)
    inputs = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(40) % 7
    before = inputs.clone(), targets.clone()
    poisoned, labels = backdoor.poison(inputs, targets, 10, seed=4)
    assert torch.equal(inputs, before[0])
    assert torch.equal(targets, before[1])
    marked = (poisoned != inputs).flatten(1).any(dim=1)
    assert int(marked.sum()) == 10
    assert torch.equal(marked, labels == 7)
    assert torch.equal(labels[~marked], targets[~marked])
    assert int((poisoned[marked][0] == 9).sum()) == (2 if len(shape) == 2 else 3 * 4)
    assert torch.equal(poisoned[marked], backdoor.trigger(inputs[marked]))
    again, other = backdoor.poison(inputs, targets, 10, seed=4), backdoor.poison(inputs, targets, 10, seed=5)
    assert torch.equal(again[0], poisoned)
    assert not torch.equal(other[0], poisoned)
    with pytest.raises(aggregators.RuleError, match="target 7 is no class"):
        backdoor.poison(inputs, targets, 7)


def test_a_backdoors_success_counts_other_classes_with_the_trigger():
    backdoor = attacks.build("backdoor", target=1, patch=1, value=5.0)
    assert isinstance(backdoor, attacks.Backdoor)
    inputs = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 5.0]])
    targets = torch.tensor([0, 1, 2, 3])

    def fooled_below_two(batch):
        return torch.where((batch[:, 1] == 5) & (batch[:, 0] < 3), 1, 0)

    assert backdoor.success(fooled_below_two, inputs, targets) == pytest.approx(2 / 3)
    with pytest.raises(aggregators.RuleError, match="every input is of the target class"):
        backdoor.success(fooled_below_two, inputs[1:2], targets[1:2])


def test_all_are_installed():
    assert sorted(NAMES) == list(registry.names(registry.ATTACKS))
    for name in NAMES:
        attack = attacks.build(name)
        assert attack.name == name
        assert attack.source


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("sign-flop", {}, "there is no attack 'sign-flop' (did you mean 'sign-flip'?)"),
        ("krum", {}, "'krum' is a kind of aggregation rule, and a kind of attack was asked for"),
        ("sign-flip", {"scael": 2}, "sign-flip has no option 'scael' (did you mean 'scale'?)"),
        ("sign-flip", {"scale": 0}, "sign-flip: scale must be above zero, and it is 0.0"),
        ("ipm", {"epsilon": "big"}, "ipm: epsilon must be a finite number, and it is 'big'"),
        ("alie", {"z": float("nan")}, "alie: z must be a finite number, and it is nan"),
        ("alie", {"z": True}, "alie: z must be a finite number, and it is True"),
        ("nan", {"scale": 2}, "nan has no option 'scale' (it has none)"),
        ("mimic", {"worker": -1}, "mimic: worker must be an integer of at least 0, and it is -1"),
        ("fang", {"stretch": 1.0}, "fang: stretch must be above one, and it is 1.0"),
        ("gaussian", {"std": 0}, "gaussian: std must be above zero, and it is 0.0"),
        ("min-max", {"direction": "up"}, "min-max: direction must be one of std, sign, mean, and it is 'up'"),
        ("backdoor", {"share": 1.5}, "backdoor: share must be at most one, and it is 1.5"),
        ("backdoor", {"patch": 0}, "backdoor: patch must be an integer of at least 1, and it is 0"),
    ],
)
def test_a_wrong_request_is_told_in_one_sentence(name, options, sentence):
    with pytest.raises(aggregators.RuleError) as caught:
        attacks.build(name, **options)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("attack", ["sign-flip", "alie", "ipm"])
def test_a_robust_pipeline_bears_what_a_mean_does_not(aggregate, attack):
    # Ten honest peers agree on a direction, but for noise; three colluders send the strongest of each attack.
    generator = torch.Generator().manual_seed(4)
    honest = 1 + 0.3 * torch.randn(10, 200, generator=generator)
    options = {"sign-flip": {"scale": 10}, "alie": {"z": -8.0}, "ipm": {"epsilon": 5}}[attack]
    bad = forged(attack, honest, **options)
    X = torch.cat([bad.repeat(3, 1), honest])
    centre = honest.mean(dim=0)
    naive = float((aggregate(X, "mean").vector - centre).norm())
    for rule in ("trimmed-mean", "median", "krum", "multi-krum", "geometric-median"):
        robust = aggregate(X, rule, pre=("arc", "nnm"), faults=3).vector
        assert float((robust - centre).norm()) < naive / 2
