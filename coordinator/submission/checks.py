"""What only the coordinator can say of a run spec: whether what it names is installed here and goes together."""

from __future__ import annotations

import math
import tomllib

from coordinator.engine import sampling, schedule
from coordinator.engine.schedule import Schedule
from coordinator.submission import compatibility, suggestions
from exchange import mechanisms, optimizers
from methods import Requirement
from methods.spelling import split
from muster.errors import ConfigError
from muster.model.layout import CHUNK_COORDINATES
from muster.spec.load import invalid_spec
from muster.spec.model import RunSpec
from muster.spec.options import missing_faults, unused_keys, wrong_options
from muster.spec.problems import Problem
from muster.spec.relations import endless_warm_up

LINK_ENDS = frozenset({"server.optimizer", "compression.feedback", "compression.down_feedback"})
NO_REMEDY = (
    "muster compressor show SPELLING and muster aggregator show RULE tell what each needs, muster config schema what "
    "each key may be"
)


def check_spec(spec: RunSpec, text: str = "", filename: str = "the run spec") -> Schedule:
    """The run's schedule, if every plug-in that the spec names can be built and has what it requires of the rest.
    Blocking: plug-ins import torch.

    `text` is the TOML that the spec was read from, if it is there: then lines are told.
    Raises `ConfigError` "spec.invalid" with the plug-in's own sentence and what to set instead, or "plugin.*".
    """
    if problems := [*wrong_options(spec), *missing_faults(spec, tomllib.loads(text) if text else None)]:
        raise invalid_spec(problems, text, filename)
    if refusal := _refusal(spec):
        found = suggestions.remedies(spec, _is_accepted)
        fix = suggestions.format_changes(found) or NO_REMEDY
        if refusal.key:
            told = invalid_spec([Problem(tuple(refusal.key.split(".")), refusal.sentence)], text, filename)
            raise ConfigError("spec.invalid", told.message, fix=fix)
        raise ConfigError(
            "spec.invalid", f"the run spec asks for what cannot be done here: {refusal.sentence}", fix=fix
        )
    optimizers.build(spec.server)
    sampling.build(spec.sampling)
    return build_schedule(spec)


def build_schedule(spec: RunSpec) -> Schedule:
    """The spec's schedule with the bound of its own aggregation rule. Blocking: rules import torch. Raises
    `ConfigError` for an unknown name."""
    from exchange import recipe

    return schedule.build(spec, lambda n, cohort: recipe.refuse(spec, n, cohort))


def warnings(spec: RunSpec) -> tuple[str, ...]:
    """The sentences of `cautions`."""
    return tuple(sentence for _, sentence in cautions(spec))


def cautions(spec: RunSpec) -> tuple[tuple[str, str], ...]:
    """What may do badly in a spec that `check_spec` accepts: for each a short stable cause, under which the run
    keeps it, and a sentence with the keys and a value to set.

    Blocking, as `check_spec`.
    """
    from exchange import downlink

    table = spec.compression
    directions = [("up", table.up, "feedback", table.feedback)]
    if not downlink.replays(spec):
        directions.append(("down", table.down, "down_feedback", table.down_feedback))
    found = [(f"compression.{each[0]}", told) for each in directions if (told := _warning(*each)) is not None]
    # How many will be asked is known of a count, and of a least number that somebody has thought of.
    expected = spec.sampling.count or spec.round.peers_min
    if told := schedule.defenceless(spec, expected):
        found.append(("faults.none", told))
    found += sorted(unused_keys(spec))
    return tuple(found)


def _warning(key: str, codec_spelling: str, feedback_key: str, feedback_spelling: str) -> str | None:
    """Of one direction's codec and feedback."""
    import compressors

    codec = compressors.build(codec_spelling)
    why = compressors.build_feedback(feedback_spelling).warn(codec, CHUNK_COORDINATES)
    if why is None:
        return None
    names = (split(feedback_spelling)[0], *suggestions.USUAL_FEEDBACKS)  # without its argument it may do
    better = (name for name in names if _goes_well(name, codec_spelling))
    told = f'compression.{key} = "{codec_spelling}" and compression.{feedback_key} = "{feedback_spelling}": {why}'
    best = next(better, None)
    return told if best is None else f'{told}; set compression.{feedback_key} = "{best}"'


def _goes_well(feedback_spelling: str, codec_spelling: str) -> bool:
    import compressors

    codec, feedback = compressors.build(codec_spelling), compressors.build_feedback(feedback_spelling)
    return (
        feedback.refuse(codec, CHUNK_COORDINATES) is None and feedback.warn(codec, CHUNK_COORDINATES) is None
    )


def _is_accepted(spec: RunSpec) -> bool:
    """Also of a change that leaves options behind which another plug-in has not."""
    try:
        return _refusal(spec) is None
    except ConfigError:
        return False


def _refusal(spec: RunSpec) -> Requirement | None:
    """Why it cannot be done, of several reasons the first; None if it can."""
    import aggregators
    import compressors
    from exchange import recipe

    try:
        recipe.check(spec)
        if said := _wrong_spelling(spec):
            return Requirement(said)
        demands = [(place, found[0]) for place, found in compatibility.unmet(spec)]
        if first := [demand for place, demand in demands if place not in LINK_ENDS]:
            return first[0]  # before the links: what is sent has to make sense
        for said in mechanisms.refusals(spec):
            return Requirement(said)
        for check in (_wrong_links, _wrong_down, _wrong_momenta, _wrong_warm_up, _wrong_clipping):
            if said := check(spec):
                return Requirement(said)
        if demands:
            return demands[0][1]
        for check in (_wrong_factor, _wrong_length):
            if said := check(spec):
                return Requirement(said)
    except (aggregators.RuleError, compressors.CodecError) as error:
        return Requirement(str(error))
    return None


def _wrong_down(spec: RunSpec) -> str | None:
    """What goes only up."""
    import compressors
    from compressors.compose.planned import Planned
    from exchange import downlink

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
    from compressors.core.replay import TERMS_MAX
    from exchange import links, recipe

    if not optimizers.find(spec.server).only_scales:
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


def _wrong_spelling(spec: RunSpec) -> str | None:
    """What names no codec or no feedback."""
    import compressors
    from exchange import downlink

    table = spec.compression
    for key, build in (
        ("up", compressors.build),
        ("feedback", compressors.build_feedback),
        ("down", compressors.build),
        ("down_feedback", compressors.build_feedback),
    ):
        if key == "down" and downlink.replays(spec):
            continue
        try:
            build(getattr(table, key))
        except compressors.CodecError as error:
            return f"compression.{key}: {error}"
    return None


def _wrong_links(spec: RunSpec) -> str | None:
    """What goes with no such codec, in either direction."""
    import compressors
    from exchange import downlink

    table = spec.compression
    for key, feedback_key in (("up", "feedback"), ("down", "down_feedback")):
        if key == "down" and downlink.replays(spec):
            continue
        codec = compressors.build(getattr(table, key))
        feedback = compressors.build_feedback(getattr(table, feedback_key))
        if refusal := feedback.refuse(codec, CHUNK_COORDINATES):
            pair = f'compression.{key} = "{codec.spelling}" and compression.{feedback_key} = "{feedback.spelling}"'
            return f"{pair}: {refusal}"
    return None


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
    if optimizers.find(spec.server).has_momentum:
        return f"{table.feedback} has a momentum, so {spec.server.optimizer} at the server would be a second one: sgd"
    if spec.train.worker_momentum:
        return f"{table.feedback} has a momentum, so train.worker_momentum would be a second one: 0"
    return None


def _wrong_warm_up(spec: RunSpec) -> str | None:
    import compressors
    from compressors.feedback.feedback import LOSSLESS

    feedback = compressors.build_feedback(spec.compression.feedback)
    if feedback.receiver_state_names and compressors.build(spec.compression.up).spelling == LOSSLESS:
        return f"{feedback.spelling} sends differences because a codec loses something: compression.up loses nothing"
    if spec.compression.warm_up_rounds and feedback.receiver_state_names:
        return f"{feedback.spelling} needs no compression.warm_up_rounds: it begins with what it sends first"
    return None


def _wrong_clipping(spec: RunSpec) -> str | None:
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


def _wrong_factor(spec: RunSpec) -> str | None:
    """A codec whose bodies do not stand alone: they go with the factor of the round."""
    import compressors
    from compressors.compose.composed import Composed
    from compressors.compose.planned import Planned
    from exchange import downlink

    table = spec.compression
    if not downlink.replays(spec) and compressors.build(table.down).shares_factor:
        return f"{table.down} has senders share a factor, and down there is one sender: leave out common"
    codec = compressors.build(table.up)
    if not codec.shares_factor:
        return None
    if isinstance(codec, Composed | Planned):
        return f"{codec.spelling} has a part whose factor all senders share: that one goes alone, powersgd:4:common"
    if downlink.replays(spec):
        return (
            f"{codec.spelling} makes bodies that are read with a factor, and compression.down replay has none"
        )
    return None


def _wrong_length(spec: RunSpec) -> str | None:
    endless = endless_warm_up(spec)
    return endless and f"compression.warm_up_rounds: {endless}"
