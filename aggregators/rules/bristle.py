"""Bristle: a peer integrates others' output layers class by class, as far as its own test set vouches for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregators.core.options import RuleError, check_integer
from aggregators.core.rule import Needs

_FLOOR = -100.0  # of a familiar class's score
_STEEP = 10.0  # how much a difference of F1 counts


@dataclass(frozen=True, kw_only=True)
class Bristle:
    """Others' output layers are taken in class by class, as far as a peer's own test set vouches for them.

    For gossip, on the output layer alone, the layers below it being shared and frozen: a peer's own program calls
    it, and no run spec can name it, as a coordinator has no local test set.

    With F the F1 score of each class on a small local test set, Delta = 10 |F_peer - F_own| and, of a class that
    the peer knows itself (a familiar one),

        score     = Delta^(3 + F_own) where the peer is better, else -Delta^(4 + F_own), at least -100
        certainty = max(0, mean - standard deviation of F_peer over the peer's best classes)
        weight    = max(0, 10 sigmoid(score/100) - 4) certainty

    The own weight is 1, and each class's column of the result is the weighted mean of that column. A foreign
    class's weights come in the same way from the sum of the peer's unbounded familiar scores. It has no f: a
    peer whose columns do worse on the local test set loses its weight, however many they are. The score and
    its constants are those of the published program; `best` is how many classes certainty looks at.

    >>> import torch
    >>> own, peers = torch.tensor([0.6, 0.6]), torch.tensor([[0.9, 0.9], [0.1, 0.1]])
    >>> Bristle().weights(own, peers, familiar=torch.tensor([True, True]))
    tensor([[2.0485, 2.0485],
            [0.0000, 0.0000]], dtype=torch.float64)
    """

    name: ClassVar[str] = "bristle"
    source: ClassVar[str] = "Verbraeken, de Vos and Pouwelse, Bristle, 2021"
    breakdown: ClassVar[str] = "any number, as far as the local test set can tell"
    needs: ClassVar[Needs] = Needs.TEST_SET

    knobs: ClassVar[Mapping[str, str]] = {
        "best": (
            "classes, at least 1, of which a peer's certainty is taken, its best first: with "
            "more, a peer weighs less that is good at few"
        ),
    }

    best: int = 3

    def __post_init__(self) -> None:
        check_integer(self.name, "best", self.best, minimum=1)

    def weights(self, own_f1: Tensor, peers_f1: Tensor, familiar: Tensor) -> Tensor:
        """[n, classes] float64 of the peers' columns, the own column's weight being 1.

        `own_f1` [classes] and `peers_f1` [n, classes] lie from 0 to 1, those of foreign classes unread;
        `familiar` [classes] says which classes the local test set has. Raises `RuleError` if it has none.
        """
        if not bool(familiar.any()):
            raise RuleError(f"{self.name} needs a local test set with one class or more")
        own, peers = own_f1.to(torch.float64)[familiar], peers_f1.to(torch.float64)[:, familiar]
        delta = _STEEP * (peers - own).abs()
        score = torch.where(peers > own, delta ** (3 + own), -(delta ** (4 + own)))
        best = peers.sort(dim=1, descending=True).values[:, : self.best]
        certainty = (best.mean(dim=1) - best.std(dim=1, correction=0)).clamp(min=0)
        weights = torch.empty(len(peers), len(familiar), dtype=torch.float64)
        weights[:, familiar] = _weight(score.clamp(min=_FLOOR)) * certainty[:, None]
        weights[:, ~familiar] = (_weight(score.sum(dim=1)) * certainty)[:, None]
        return weights

    def integrate(self, own: Tensor, peers: Tensor, weights: Tensor) -> Tensor:
        """The new output layer [classes, h], of the own [classes, h] and the peers' [n, classes, h].

        Raises `RuleError` where a peer's layer is not finite: it is to be refused, not weighed.
        """
        if not bool(peers.isfinite().all()):
            raise RuleError(f"{self.name}: a peer's output layer is not finite")
        shares = weights.to(peers)
        mixed = own + (shares[:, :, None] * peers).sum(dim=0)
        return mixed / (1 + shares.sum(dim=0))[:, None]


def _weight(score: Tensor) -> Tensor:
    return (10 * torch.sigmoid(score / 100) - 4).clamp(min=0)
