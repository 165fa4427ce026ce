"""Methods of two ends: a server's optimizer and the peers' feedback that are of no use without each other."""

from __future__ import annotations

from muster.spec.model import RunSpec

MASHA = "masha"


def wrong_masha(spec: RunSpec) -> str | None:
    """Why the two ends of MASHA do not go together, or with the rest; None if they do, or are not there."""
    import compressors
    from compressors.masha import Masha

    table, train = spec.compression, spec.train
    feedback = compressors.build_feedback(table.feedback)
    if spec.server.optimizer != MASHA:
        if isinstance(feedback, Masha):
            return f"compression.feedback {feedback.spelling} belongs to server.optimizer {MASHA}"
        return None
    if not isinstance(feedback, Masha) or feedback.tau != spec.server.momentum:
        return f"{MASHA} needs compression.feedback masha:{spec.server.momentum!r}, of server.momentum as its tau"
    if train.steps != 1 or train.lr != 1 or train.optimizer != "sgd" or train.momentum or train.weight_decay:
        return (
            f"{MASHA} needs of each peer its operator and no more: train.steps 1, train.lr 1, optimizer sgd without "
            "momentum and weight_decay, and a batch_size that takes in all examples"
        )
    if train.worker_momentum:
        return f"{MASHA} extrapolates at the server, and train.worker_momentum would do so too: 0"
    return None
