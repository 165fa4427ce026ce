"""What only the coordinator can say of a run spec: whether what it names is installed here and goes together."""

from __future__ import annotations

from coordinator import optimizers, sampling
from coordinator.engine import schedule
from coordinator.engine.schedule import Schedule
from muster.errors import ConfigError
from muster.layout import CHUNK_COORDINATES
from muster.spec.model import RunSpec

ONEBIT_ADAM = "onebit-adam"
SPSA, ONE_BYTE = "spsa", "one-byte"
SGD_ONLY = ("optimizer", "momentum", "weight_decay", "epochs", "steps", "clip_norm", "precision")


def check_spec(spec: RunSpec) -> Schedule:
    """The run's schedule, if every plug-in that the spec names can be built. Blocking: plug-ins import torch.

    Raises `ConfigError` "spec.invalid" with the plug-in's own sentence, or "plugin.*".
    """
    import compressors
    from coordinator import coupled, downlink, recipe

    try:
        recipe.check(spec)
        if refusal := _wrong_one_byte(spec):
            raise compressors.CodecError(refusal)
        _check_link(spec.compression.up, spec.compression.feedback)
        if not downlink.replays(spec):
            _check_link(spec.compression.down, spec.compression.down_feedback)
        for wrong in (_wrong_down, _wrong_momenta, _wrong_warm_up, _wrong_one_bit_adam, coupled.wrong_masha):
            if refusal := wrong(spec):
                raise compressors.CodecError(refusal)
    except ValueError as error:  # RuleError, CodecError
        raise ConfigError(
            "spec.invalid",
            f"the run spec asks for what cannot be done here: {error}",
            fix="muster config validate SPEC",
        ) from error
    optimizers.build(spec.server)
    sampling.build(spec.sampling)
    return schedule.build(spec)


def _wrong_down(spec: RunSpec) -> str | None:
    """What goes only up."""
    import compressors
    from compressors.planned import Planned
    from coordinator import downlink

    table = spec.compression
    if compressors.build_feedback(table.down_feedback).receiver_state_names:
        return (
            f"{table.down_feedback} sends differences, and the step from version to version is one already: "
            "down_feedback is ef14 or none"
        )
    if downlink.replays(spec):
        return _wrong_replay(spec)
    if isinstance(compressors.build(table.down), Planned):
        return (
            f"peers choose among codecs for what they send; compression.down is one of them, not {table.down}"
        )
    return None


def _wrong_replay(spec: RunSpec) -> str | None:
    """What makes a step something else than a sum of what came up."""
    from coordinator import links, recipe

    if spec.server.optimizer != "sgd":
        return f"replay repeats a sum of updates, and {spec.server.optimizer} makes more of it: server.optimizer sgd"
    if links.sends_differences(spec):
        return f"replay repeats a sum of updates, and {spec.compression.feedback} sends differences: ef14 or none"
    if not recipe.is_linear(spec):
        return (
            f"replay repeats a sum of updates, and {spec.aggregation.rule} judges each coordinate by itself or "
            "keeps vectors of its own: a rule that weighs whole updates, such as mean, multi-krum or caf"
        )
    return None


def _check_link(codec_spelling: str, feedback_spelling: str) -> None:
    """Raises `CodecError` unless one direction's codec and feedback exist and go together."""
    import compressors

    codec = compressors.build(codec_spelling)
    feedback = compressors.build_feedback(feedback_spelling)
    if refusal := feedback.refuse(codec, CHUNK_COORDINATES):
        raise compressors.CodecError(refusal)


def _wrong_momenta(spec: RunSpec) -> str | None:
    """A feedback that has a momentum needs it to be the only one over rounds."""
    import compressors

    table = spec.compression
    if compressors.build_feedback(table.down_feedback).has_momentum:
        return (
            f"{table.down_feedback} has a momentum, and the step down must not: down_feedback is ef14 or none"
        )
    if not compressors.build_feedback(table.feedback).has_momentum:
        return None
    if spec.server.optimizer not in ("sgd", ONEBIT_ADAM):
        return f"{table.feedback} has a momentum, so {spec.server.optimizer} at the server would be a second one: sgd"
    if spec.train.worker_momentum:
        return f"{table.feedback} has a momentum, so train.worker_momentum would be a second one: 0"
    return None


def _wrong_warm_up(spec: RunSpec) -> str | None:
    import compressors

    feedback = compressors.build_feedback(spec.compression.feedback)
    if spec.compression.warm_up_rounds and feedback.receiver_state_names:
        return f"{feedback.spelling} needs no compression.warm_up_rounds: it begins with what it sends first"
    return None


def _wrong_one_bit_adam(spec: RunSpec) -> str | None:
    """Its two ends are the server's optimizer and the peers' feedback: neither works without the other."""
    import compressors
    from compressors.local_momentum import LocalMomentum

    table = spec.compression
    feedback = compressors.build_feedback(table.feedback)
    if spec.server.optimizer != ONEBIT_ADAM:
        if isinstance(feedback, LocalMomentum):
            return f"compression.feedback {feedback.spelling} belongs to server.optimizer {ONEBIT_ADAM}"
        return None
    if not isinstance(feedback, LocalMomentum) or feedback.beta != spec.server.beta1:
        return f"{ONEBIT_ADAM} needs compression.feedback momentum:{spec.server.beta1!r}, of its own beta1"
    if not table.warm_up_rounds:
        return f"{ONEBIT_ADAM} needs compression.warm_up_rounds, in which its second moment is learnt"
    down = compressors.build(table.down)
    if down.contractive and down.delta(CHUNK_COORDINATES) > 0.5:
        return None
    return f"{ONEBIT_ADAM} diverges where its step goes down as coarsely as by {table.down}: identity, bf16 or int8"


def _wrong_one_byte(spec: RunSpec) -> str | None:
    """The algorithm's updates are sums of the codec's directions: neither is of use without the other."""
    import compressors
    from compressors.one_byte import OneByte

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


def _codec_names(spelling: str) -> set[str]:
    """The codecs of a composition, or of a choice of several."""
    return {part.partition(":")[0] for choice in spelling.split("|") for part in choice.split("+")}
