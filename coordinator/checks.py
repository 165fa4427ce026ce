"""What only the coordinator can say of a run spec: whether what it names is installed here and goes together."""

from __future__ import annotations

from coordinator import optimizers, sampling
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
    from coordinator import recipe

    try:
        recipe.check(spec)
        _check_link(spec.compression.up, spec.compression.feedback)
        _check_link(spec.compression.down, spec.compression.down_feedback)
        if compressors.build_feedback(spec.compression.down_feedback).receiver_state_names:
            raise compressors.CodecError(
                f"{spec.compression.down_feedback} sends differences, and the step from version to version is one "
                "already: down_feedback is ef14 or none"
            )
    except ValueError as error:  # RuleError, CodecError
        raise ConfigError(
            "spec.invalid",
            f"the run spec asks for what cannot be done here: {error}",
            fix="muster config validate SPEC",
        ) from error
    optimizers.build(spec.server)
    sampling.build(spec.sampling)
    return schedule.build(spec)


def _check_link(codec_spelling: str, feedback_spelling: str) -> None:
    """Raises `CodecError` unless one direction's codec and feedback exist and go together."""
    import compressors

    codec = compressors.build(codec_spelling)
    feedback = compressors.build_feedback(feedback_spelling)
    if refusal := feedback.refuse(codec, CHUNK_COORDINATES):
        raise compressors.CodecError(refusal)
