"""The source of a task of quadratics of unlike optima, whose error is known: peers that train alone drift apart."""

SOURCE = '''
import torch
from torch import nn
from torch.utils.data import TensorDataset

import muster

SIZE = 20


def quadratic(index, count):
    """A [d, d], eigenvalues 1 to 10 along directions of its own, and b [d], the optimum."""
    def drawn(number, *shape):
        generator = torch.Generator().manual_seed(number)
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    directions, _ = torch.linalg.qr(drawn(index, SIZE, SIZE))
    values = torch.linspace(1.0, 10.0, SIZE, dtype=torch.float64)
    return directions @ torch.diag(values) @ directions.T, 3.0 * drawn(1000 + index, SIZE)


def optimum(count):
    """Of the sum of `count` of them."""
    pairs = [quadratic(index, count) for index in range(count)]
    return torch.linalg.solve(sum(A for A, _ in pairs), sum(A @ b for A, b in pairs))


class Point(nn.Module):
    """A point, told from the common optimum: a version's float32 then holds any error to seven digits."""

    def __init__(self, start):
        super().__init__()
        self.place = nn.Parameter(start)


class Quadratics(muster.Task):
    def model(self):
        return Point(-optimum(self.options["peers"]))

    def train_data(self, site):
        A, b = quadratic(site.data["index"], self.options["peers"])
        return TensorDataset(A[None], (b - optimum(self.options["peers"]))[None])

    def loss(self, model, batch):
        A, b = batch[0][0], batch[1][0]
        away = model.place - b
        return 0.5 * away @ A @ away

    def evaluate(self, model, site):
        return {"error": float(model.place.norm() / optimum(self.options["peers"]).norm())}
'''
