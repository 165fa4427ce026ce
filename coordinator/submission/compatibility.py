"""Methods of two ends, a codec, a feedback, a local algorithm or a server's optimizer, that are of no use alone.

Each check gives a sentence why the ends do not go together, or with the rest of the run spec; None if they do, or are
not there.
"""

from __future__ import annotations

import math

from muster.model.layout import CHUNK_COORDINATES
from muster.spec.model import RunSpec

MASHA = "masha"
ONEBIT_ADAM = "onebit-adam"
SPSA, ONE_BYTE = "spsa", "one-byte"
SGD_ONLY = ("optimizer", "momentum", "weight_decay", "epochs", "steps", "clip_norm", "precision")


def wrong_masha(spec: RunSpec) -> str | None:
    """The server's half steps, and differences from an anchor."""
    import compressors
    from compressors.feedback.masha import Masha

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
            "momentum and weight_decay, and a batch_size that takes in all examples, which each peer checks"
        )
    if train.clip_norm is not None:
        return (
            f"{MASHA} compares operators as they are, and train.clip_norm shortens some of them: leave it out"
        )
    if (
        spec.sampling.policy != "uniform"
        or spec.sampling.fraction not in (None, 1)
        or spec.sampling.count is not None
    ):
        return (
            f"{MASHA} compares each peer with its own anchor, so every round asks all: leave out [sampling]"
        )
    if spec.round.quorum != 1:
        return f"{MASHA} compares each peer with its own anchor, so every round waits for all: round.quorum 1"
    if train.worker_momentum:
        return f"{MASHA} extrapolates at the server, and train.worker_momentum would do so too: 0"
    return _wrong_masha_down(spec)


def _wrong_masha_down(spec: RunSpec) -> str | None:
    """What goes down is the whole step, the way to and from the anchor with it, and not, as in the paper, only the
    answer to what came up: where a good part of that stays behind, nothing pulls a saddle's wrong step back."""
    import compressors
    from compressors.feedback.feedback import DELTA_ENOUGH

    down = compressors.build(spec.compression.down)
    if down.contractive and down.delta(CHUNK_COORDINATES) >= DELTA_ENOUGH:
        return None
    return (
        f"{MASHA}'s step must go down nearly whole, or it runs away: compression.down identity, bf16 or int8, "
        f"not {down.spelling}"
    )


def wrong_dgc(spec: RunSpec) -> str | None:
    """What goes up at first has larger shares, and what goes up is clipped: down there is nothing to clip."""
    import compressors

    table = spec.compression
    down = compressors.build_feedback(table.down_feedback)
    if down.norm_max(1) < math.inf:
        return f"{down.spelling} clips what peers send up: compression.down_feedback is ef14 or none"
    feedback = compressors.build_feedback(table.feedback)
    if not table.warm_up_rounds:
        return None
    if refusal := feedback.refuse_warm_up(compressors.build(table.up)):
        return f"{refusal}: fewer codecs or fewer digits in compression.up, or compression.warm_up_rounds 0"
    return None


def wrong_one_bit_adam(spec: RunSpec) -> str | None:
    """Its two ends are the server's optimizer and the peers' feedback: neither works without the other."""
    import compressors
    from compressors.feedback.local_momentum import LocalMomentum

    table = spec.compression
    feedback = compressors.build_feedback(table.feedback)
    if spec.server.optimizer != ONEBIT_ADAM:
        if isinstance(feedback, LocalMomentum):
            return f"compression.feedback {feedback.spelling} belongs to server.optimizer {ONEBIT_ADAM}"
        return None
    if not isinstance(feedback, LocalMomentum) or feedback.beta != spec.server.beta1:
        return f"{ONEBIT_ADAM} needs compression.feedback momentum:{spec.server.beta1!r}, of its own beta1"
    if compressors.build(table.up).spelling == "identity":
        return f"{ONEBIT_ADAM} takes what goes up without loss for its warm-up: compression.up sign, say"
    if not table.warm_up_rounds:
        return f"{ONEBIT_ADAM} needs compression.warm_up_rounds, in which its second moment is learnt"
    return None


def wrong_one_byte(spec: RunSpec) -> str | None:
    """The algorithm's updates are sums of the codec's directions: neither is of use without the other."""
    import compressors
    from compressors.sketches.one_byte import OneByte

    table, train = spec.compression, spec.train
    if ONE_BYTE in _codec_names(table.down):
        return f"{ONE_BYTE} sends what {SPSA} finds, and nothing else: compression.down is another codec"
    if train.algorithm != SPSA:
        if ONE_BYTE in _codec_names(table.up):
            return (
                f"{ONE_BYTE} carries next to nothing of an update that is no sum of its directions: "
                f"it belongs to train.algorithm {SPSA}"
            )
        return None
    if not isinstance(compressors.build(table.up), OneByte):
        return f"{SPSA} needs compression.up {ONE_BYTE}:P, P samples a round, such as {ONE_BYTE}:16, not {table.up}"
    if compressors.build_feedback(table.feedback).spelling != "none":
        return f"{SPSA} loses nothing that a feedback could keep: compression.feedback none, not {table.feedback}"
    if table.warm_up_rounds:
        return f"{SPSA} has no first rounds that are different: compression.warm_up_rounds 0"
    if train.worker_momentum:
        return (
            f"{SPSA} has other directions in each round, so train.worker_momentum could not be sent: 0, and "
            "server.optimizer momentum instead"
        )
    for name in SGD_ONLY:
        if getattr(train, name) != type(train).model_fields[name].default:
            return f"{SPSA} knows no train.{name}: it reads lr and batch_size, and eps in train.options"
    return None


def wrong_common_factor(spec: RunSpec) -> str | None:
    """A codec whose bodies do not stand alone: they go with the factor of the round."""
    import compressors
    from compressors.lowrank.lowrank import LowRank

    table = spec.compression
    if _shares_factor(table.down):
        return f"{table.down} has senders share a factor, and down there is one sender: leave out common"
    if not _shares_factor(table.up):
        return None
    codec = compressors.build(table.up)
    if not isinstance(codec, LowRank):
        return f"{codec.spelling} has a part whose factor all senders share: that one goes alone, powersgd:4:common"
    if table.down == "replay":
        return (
            f"{codec.spelling} makes bodies that are read with a factor, and compression.down replay has none"
        )
    return None


def _shares_factor(spelling: str) -> bool:
    parts = (part.split(":") for choice in spelling.split("|") for part in choice.split("+"))
    return any(part[0] == "powersgd" and "common" in part for part in parts)


def _codec_names(spelling: str) -> set[str]:
    """The codecs of a composition, or of a choice of several."""
    return {part.partition(":")[0] for choice in spelling.split("|") for part in choice.split("+")}
