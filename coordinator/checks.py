"""What only the coordinator can say of a run spec: whether what it names is installed here and goes together."""

from __future__ import annotations

from coordinator import optimizers, sampling
from coordinator.engine import schedule
from coordinator.engine.schedule import Schedule
from muster.errors import ConfigError
from muster.spec.model import RunSpec


def check_spec(spec: RunSpec) -> Schedule:
    """The run's schedule, if every plug-in that the spec names can be built. Blocking: plug-ins import torch.

    Raises `ConfigError` "spec.invalid" with the plug-in's own sentence, or "plugin.*".
    """
    import aggregators
    import compressors

    table = spec.aggregation
    try:
        aggregators.build(table.rule, pre=table.pre, faults=table.faults, options=table.options)
        compressors.build(spec.compression.up)
        compressors.build_feedback(spec.compression.feedback)
        compressors.build(spec.compression.down)
        compressors.build_feedback(spec.compression.down_feedback)
    except ValueError as error:  # RuleError, CodecError
        raise ConfigError(
            "spec.invalid",
            f"the run spec asks for what cannot be done here: {error}",
            fix="muster config validate SPEC",
        ) from error
    optimizers.build(spec.server)
    sampling.build(spec.sampling)
    return schedule.build(spec)
