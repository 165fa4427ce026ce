"""What a peer does with its data in a round. One algorithm a file; a user's own package may add more.

algorithm = build("sgd", {})
contribution = algorithm.fit(task, model, data, context)      # changes the model in place
"""

from exchange.algorithms import LocalAlgorithm, build

__all__ = ["LocalAlgorithm", "build"]
