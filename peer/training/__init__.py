"""What a peer does with its data in a round. One algorithm a file; a user's own package may add more.

algorithm = build("sgd", {})
report = algorithm.fit(task, model, data, context)      # changes the model in place
"""

from peer.training.algorithm import LocalAlgorithm, build

__all__ = ["LocalAlgorithm", "build"]
