"""Server optimizers: how a round's aggregate moves the model."""

from exchange.optimizers.base import ServerOptimizer, build, find

__all__ = ["ServerOptimizer", "build", "find"]
