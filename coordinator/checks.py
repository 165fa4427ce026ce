"""What only the coordinator can say of a run spec: whether what it names is installed here and goes together."""

from __future__ import annotations

from coordinator import coupled, optimizers, sampling
from coordinator.engine import schedule
from coordinator.engine.schedule import Schedule
from muster.errors import ConfigError
from muster.layout import CHUNK_COORDINATES
from muster.spec.model import RunSpec


def check_spec(spec: RunSpec) -> Schedule:
    """The run's schedule, if every plug-in that the spec names can be built. Blocking: plug-ins import torch.

    Raises `ConfigError` "spec.invalid" with the plug-in's own sentence, or "plugin.*".
    """
    import compressors
    from coordinator import downlink, recipe

    try:
        recipe.check(spec)
        if refusal := coupled.wrong_one_byte(spec):
            raise compressors.CodecError(refusal)
        _check_link(spec.compression.up, spec.compression.feedback)
        if not downlink.replays(spec):
            _check_link(spec.compression.down, spec.compression.down_feedback)
        for wrong in (
            _wrong_down,
            _wrong_momenta,
            _wrong_warm_up,
            coupled.wrong_dgc,
            coupled.wrong_one_bit_adam,
            coupled.wrong_masha,
            coupled.wrong_common_factor,
        ):
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
    from compressors.replay import TERMS_MAX
    from coordinator import links, recipe

    if spec.server.optimizer != "sgd":
        return f"replay repeats a sum of updates, and {spec.server.optimizer} makes more of it: server.optimizer sgd"
    if links.sends_differences(spec):
        return f"replay repeats a sum of updates, and {spec.compression.feedback} sends differences: ef14 or none"
    if max(spec.round.peers_min, spec.sampling.count or 0) > TERMS_MAX:
        return f"replay repeats a sum of updates, of {TERMS_MAX} at most: fewer in round.peers_min and sampling.count"
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
    if spec.server.optimizer not in ("sgd", coupled.ONEBIT_ADAM):
        return f"{table.feedback} has a momentum, so {spec.server.optimizer} at the server would be a second one: sgd"
    if spec.train.worker_momentum:
        return f"{table.feedback} has a momentum, so train.worker_momentum would be a second one: 0"
    return None


def _wrong_warm_up(spec: RunSpec) -> str | None:
    import compressors

    feedback = compressors.build_feedback(spec.compression.feedback)
    if feedback.receiver_state_names and compressors.build(spec.compression.up).spelling == "identity":
        return f"{feedback.spelling} sends differences because a codec loses something: compression.up loses nothing"
    if spec.compression.warm_up_rounds and feedback.receiver_state_names:
        return f"{feedback.spelling} needs no compression.warm_up_rounds: it begins with what it sends first"
    return None
