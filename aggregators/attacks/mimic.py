"""The honest update of one peer, sent once more by every faulty one: no outlier at all, and yet a bias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregators.attacks.attack import Attack, Forgery, View
from aggregators.attacks.combination import mixture
from aggregators.core.gram import Gram
from aggregators.core.options import RuleError, check_integer

_SOURCE = "Karimireddy, He and Jaggi, Byzantine-robust learning on heterogeneous datasets, ICLR 2022"


@dataclass(frozen=True, kw_only=True)
class Mimic(Attack):
    """The honest update of one peer, sent once more by every faulty one.

    Copies the update in row `worker` of those seen.

    >>> import torch
    >>> from aggregators.attacks import forge
    >>> honest = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2]])
    >>> forge("mimic", honest)
    tensor([1., 2.])
    """

    name: ClassVar[str] = "mimic"
    source: ClassVar[str] = _SOURCE

    knobs: ClassVar[Mapping[str, str]] = {
        "worker": (
            "row of the honest update that is copied, from 0: which peer's data get the weight of "
            "all faulty ones"
        ),
    }

    worker: int = 0

    def __post_init__(self) -> None:
        check_integer(self.name, "worker", self.worker, minimum=0)

    def _plan(self, view: View) -> Forgery:
        if self.worker >= view.rows:
            raise RuleError(f"{self.name}: worker is {self.worker}, and {view.rows} updates are seen")
        return _copy_of(self.worker, view)


@dataclass(frozen=True, kw_only=True)
class OnlineMimic(Attack):
    """The honest update that stands out most over the rounds, sent once more by every faulty peer.

    Copies the update farthest along z, the direction in which the honest differ most over the rounds.

    With C the covariance of a round's updates, z <- t z + C z / |C z|, made a unit vector, in round t; it
    starts as the top eigenvector of the first round's C. z is the `vector` of the `Memory` given, and begins
    anew where none is.

    >>> import torch
    >>> from aggregators.attacks import forge
    >>> honest = torch.tensor([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2]])
    >>> forge("online-mimic", honest)
    tensor([0.8000, 2.2000])
    """

    name: ClassVar[str] = "online-mimic"
    source: ClassVar[str] = _SOURCE
    seen_min: ClassVar[int] = 2

    def _plan(self, view: View) -> Forgery:
        gram = Gram(view.rows + 1)
        for start, chunk in view.chunks():
            gram.add(torch.cat([chunk, _slice(view, start, chunk).unsqueeze(0)]))
        inner = gram.matrix
        h = view.rows
        # Behind the rows stands z; centring leaves it where it is.
        centring = torch.eye(h + 1, dtype=torch.float64)
        centring[:h, :h] -= 1 / h
        centred = centring @ inner @ centring
        shares = torch.zeros(h + 1, dtype=torch.float64)
        if view.memory.vector is None:
            shares[:h] = torch.linalg.eigh(centred[:h, :h]).eigenvectors[:, -1]
            if float(shares[shares.abs().argmax()]) < 0:  # towards the one that stands out
                shares.neg_()
        else:
            shares[:h] = centred[:h, -1]
        shares = _unit(shares, centred)
        shares[-1] += view.memory.rounds
        shares = _unit(shares, centred)
        _remember(view, centring @ shares)
        return _copy_of(int((centred @ shares)[:h].argmax()), view)


def _unit(shares: Tensor, gram: Tensor) -> Tensor:
    square = float(shares @ gram @ shares)
    return shares / square**0.5 if square > 0 else shares


def _slice(view: View, start: int, chunk: Tensor) -> Tensor:
    if view.memory.vector is None:
        return torch.zeros_like(chunk[0])
    return view.memory.vector[start : start + chunk.shape[1]].to(chunk)


def _remember(view: View, shares: Tensor) -> None:
    """z for the next round: `shares` of the updates and the present z."""
    parts = [
        torch.mv(chunk.T, shares[:-1].to(chunk)) + float(shares[-1]) * _slice(view, start, chunk)
        for start, chunk in view.chunks()
    ]
    view.memory.vector = torch.cat(parts)
    view.memory.rounds += 1


def _copy_of(row: int, view: View) -> Forgery:
    shares = torch.zeros(view.rows, dtype=torch.float64)
    shares[row] = 1.0
    return mixture(shares)
