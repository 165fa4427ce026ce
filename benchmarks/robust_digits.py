"""Distributed SGD on the digits of sklearn under attack, in one process: what `benchmarks.robustness` measures.

An MLP of 64-32-10 (2410 parameters), ten honest peers with batches of 25 and worker momentum, f faulty ones. The
gradients of all peers are made at once, by batched matrix products.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

import aggregators
from aggregators import attacks
from aggregators.core.rule import Needs

PEERS = 10
BATCH = 25
RATE = 0.3
MOMENTUM = 0.9
TEST = 360
MODEL_MAX = 1e12  # of a parameter: beyond it squares overflow
ROOT = 100  # examples of the server's own, for a rule that asks for a trusted update
Known: TypeAlias = attacks.Aggregation | aggregators.Pipeline

WIDTHS = (64, 32, 10)
SPLIT = (64 * 32, 32, 32 * 10, 10)


@dataclass(frozen=True, kw_only=True)
class Digits:
    """`inputs` [N, 64] from 0 to 1 and `labels` [N]: of each peer [10, N, ...], of the server and of the test."""

    inputs: Tensor
    labels: Tensor
    root_inputs: Tensor
    root_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor


def load(similarity: float, seed: int) -> Digits:
    """The share `similarity` of the training examples is dealt at random, the rest in the order of its labels
    (gamma-similarity): at 1 all peers are alike, at 0 each has seen one or two digits."""
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    inputs, labels = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    test, root, train = order[:TEST], order[TEST : TEST + ROOT], order[TEST + ROOT :]
    train = train[: len(train) // PEERS * PEERS]
    alike = round(similarity * len(train) / PEERS)  # of each peer
    mixed, rest = train[: alike * PEERS], train[alike * PEERS :]
    rest = rest[labels[rest].argsort(stable=True)]
    dealt = torch.cat([mixed.view(PEERS, -1), rest.view(PEERS, -1)], dim=1)
    return Digits(
        inputs=inputs[dealt],
        labels=labels[dealt],
        root_inputs=inputs[root],
        root_labels=labels[root],
        test_inputs=inputs[test],
        test_labels=labels[test],
    )


def initial(seed: int) -> Tensor:
    """[2410], as `nn.Linear` draws its weights."""
    generator = torch.Generator().manual_seed(seed)
    parts = [
        (2 * torch.rand(size, generator=generator) - 1) / fan_in**0.5
        for size, fan_in in zip(SPLIT, (64, 64, 32, 32), strict=True)
    ]
    return torch.cat(parts)


def _layers(model: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    first, bias, second, last = torch.split(model, list(SPLIT))
    return first.view(WIDTHS[0], WIDTHS[1]), bias, second.view(WIDTHS[1], WIDTHS[2]), last


def predict(model: Tensor, inputs: Tensor) -> Tensor:
    """Classes [N] of `inputs` [N, 64]."""
    first, bias, second, last = _layers(model)
    return ((inputs @ first + bias).relu() @ second + last).argmax(dim=1)


def gradients(model: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
    """[p, 2410]: of the mean cross entropy of each peer's batch, `inputs` [p, b, 64] and `labels` [p, b]."""
    first, bias, second, last = _layers(model)
    hidden = (inputs @ first + bias).relu()
    slope = (hidden @ second + last).softmax(dim=-1)
    slope.scatter_add_(-1, labels.unsqueeze(-1), slope.new_full((*labels.shape, 1), -1.0))
    slope /= labels.shape[1]
    back = (slope @ second.T) * (hidden > 0)
    return torch.cat(
        [
            (inputs.mT @ back).flatten(1),
            back.sum(dim=1),
            (hidden.mT @ slope).flatten(1),
            slope.sum(dim=1),
        ],
        dim=1,
    )


class Defence:
    """A rule with its pre-rules, "arc+nnm+trimmed-mean", and what it keeps from round to round."""

    def __init__(self, spelling: str, faults: int) -> None:
        *self._pre, self._rule = spelling.split("+")
        honest = aggregators.build(self._rule, pre=self._pre)
        # A plain mean is measured too: it is the rule that bears nothing.
        self._faults = 0 if Needs.HONESTY in honest.rule.needs and not self._pre else faults
        self._pipeline = aggregators.build(self._rule, pre=self._pre, faults=self._faults)
        self.trusting = Needs.TRUSTED in self._pipeline.needs
        self._state: Mapping[str, Tensor] = {}

    def refuse(self, n: int) -> str | None:
        return self._pipeline.refuse(n + self.trusting)

    def aggregate(self, updates: Tensor, root: Tensor, seed: int) -> aggregators.Aggregate:
        """Of `updates` [n, d]; `root` [1, d] is the server's own, which only some rules see."""
        return aggregators.aggregate(
            torch.cat([root, updates]) if self.trusting else updates,
            self._rule,
            self._pre,
            faults=self._faults,
            seed=seed,
            trusted=0 if self.trusting else None,
            state=self._state,
            admitted=True,
        )

    def step(self, updates: Tensor, root: Tensor, seed: int) -> Tensor:
        done = self.aggregate(updates, root, seed)
        self._state = done.state
        return done.vector

    def known(self, root: Tensor, seed: int) -> Known:
        """What an attacker searches against: all of it."""
        if self._pipeline.needs & (Needs.TRUSTED | Needs.STATE | Needs.KEYS):
            return lambda pool: self.aggregate(pool, root, seed).vector
        return self._pipeline


class _Momentum:
    """m <- beta m + (1 - beta) g, beginning with the first g."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def fold(self, gradient: Tensor) -> Tensor:
        if self.value is None:
            self.value = gradient.clone()
        else:
            self.value.mul_(MOMENTUM).add_(gradient, alpha=1 - MOMENTUM)
        return self.value


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training under one attack; `attack` "none" lets the faulty copy honest peers.

    A search costs many times a round, and what it finds is a multiple of the momenta's spread or mean, which
    hardly changes from one round to the next: it is made every `search_every` rounds.
    """

    rule: str
    attack: str
    similarity: float
    faults: int
    seed: int
    steps: int
    search_every: int

    def run(self) -> dict[str, float] | str:
        """`accuracy` on the test's examples, and of a backdoor its `success`; or why the rule refuses."""
        defence = Defence(self.rule, self.faults)
        if refusal := defence.refuse(PEERS + self.faults):
            return refusal
        data = load(self.similarity, self.seed)
        model = initial(self.seed)
        attacker = _Attacker(self)
        generator = torch.Generator().manual_seed(self.seed)
        honest, root = _Momentum(), _Momentum()
        rows = torch.arange(PEERS).unsqueeze(1)
        for step in range(self.steps):
            drawn = torch.randint(data.labels.shape[1], (PEERS, BATCH), generator=generator)
            inputs, labels = data.inputs[rows, drawn], data.labels[rows, drawn]
            updates = honest.fold(gradients(model, inputs, labels))
            own = root.fold(gradients(model, data.root_inputs[None], data.root_labels[None]))
            forged = attacker.forge(model, (inputs, labels), updates, defence.known(own, step), step)
            following = model - RATE * defence.step(torch.cat([updates, forged]), own, step)
            if float(following.abs().max()) > MODEL_MAX:
                break  # it has diverged; what it knew is long gone
            model = following
        accuracy = float((predict(model, data.test_inputs) == data.test_labels).double().mean())
        found = {"accuracy": accuracy}
        if isinstance(attacker.attack, attacks.Backdoor):
            found["success"] = attacker.attack.success(
                lambda inputs: predict(model, inputs), data.test_inputs, data.test_labels
            )
        return found


class _Attacker:
    """Sees all honest updates and batches; what it poisons it trains on those, with a momentum of its own."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self.attack: attacks.Attack | None = None
        if trial.attack == "backdoor":
            self.attack = attacks.build("backdoor", boost=(PEERS + trial.faults) / trial.faults)
        elif trial.attack != "none":
            self.attack = attacks.build(trial.attack)
        self._memory = attacks.Memory()
        self._momentum = _Momentum()
        self._forgery: attacks.Forgery | None = None

    def forge(
        self, model: Tensor, batch: tuple[Tensor, Tensor], updates: Tensor, known: Known, step: int
    ) -> Tensor:
        """[f, d]: what the faulty peers send."""
        faults = self._trial.faults
        if self.attack is None:
            return updates[:faults]
        if type(self.attack).poison is not attacks.Attack.poison:
            bad = [
                self.attack.poison(own, truth, WIDTHS[-1], seed=step * PEERS + peer)
                for peer, (own, truth) in enumerate(zip(*batch, strict=True))
            ]
            poisoned, false = (torch.stack(part) for part in zip(*bad, strict=True))
            updates = self._momentum.fold(gradients(model, poisoned, false))
        if self._forgery is None or not self.attack.needs_pipeline or step % self._trial.search_every == 0:
            self._forgery = self.attack.plan(
                aggregators.MatrixSource(updates),
                copies=faults,
                pipeline=known,
                seed=step,
                memory=self._memory,
            )
        out = torch.empty_like(updates[0])
        self._forgery.forge(updates, out)
        return out.expand(faults, -1)
