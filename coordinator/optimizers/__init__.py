"""Server optimizers: how a round's aggregate moves the model."""

from coordinator.optimizers.base import ServerOptimizer, build

__all__ = ["ServerOptimizer", "build"]
