"""Server optimizers: how a round's aggregate moves the model."""

from exchange.optimizers.base import ServerOptimizer, build

__all__ = ["ServerOptimizer", "build"]
