"""What the peers of an evaluation say, as one number for each metric."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from coordinator.engine.state import AssignmentState, AssignmentStatus
from muster.task.metrics import METRICS_MAX, PEERS


@dataclass(frozen=True, kw_only=True)
class PeersMean:
    """The mean of peers' metrics, weighted by their examples."""

    metrics: Mapping[str, float]
    warnings: tuple[tuple[str, str], ...]  # cause and sentence


def peers_mean(evaluated: Iterable[AssignmentState], examples_max: int | None) -> PeersMean:
    """Each metric's mean over the peers that report it, weighted by their examples (of which `examples_max` count).

    A peer that does not say how many examples it scored counts like the median of those that do. A value that is not
    finite is left out where others are. `METRICS_MAX` names are kept, those that most peers report.
    """
    reports = sorted(
        (each for each in evaluated if each.status is AssignmentStatus.DELIVERED and each.metrics),
        key=lambda each: each.peer_id,
    )
    counts = [min(each.examples, examples_max or each.examples) for each in reports]
    told = [count for count in counts if count]
    stands_for = median(told) if told else 1
    warnings: list[tuple[str, str]] = []
    if told and len(told) < len(counts):
        silent = len(counts) - len(told)
        sentence = (
            f"{silent} of {len(counts)} peers do not say of how many examples their metrics are: in the mean each "
            f'counts like the median of the others, {stands_for:g}; return "examples" with the metrics'
        )
        warnings.append(("metrics.uncounted", sentence))
    popular = Counter(name for each in reports for name in each.metrics)
    names = sorted(popular, key=lambda name: (-popular[name], name))
    if len(names) > METRICS_MAX:
        sentence = (
            f"the peers report {len(names)} metrics of different names: the mean is told of {METRICS_MAX}"
        )
        warnings.append(("metrics.too_many", sentence))
    weighted = [
        (each.metrics, float(count or stands_for)) for each, count in zip(reports, counts, strict=True)
    ]
    return PeersMean(
        metrics={
            f"{PEERS}{name}": _mean([(found[name], weight) for found, weight in weighted if name in found])
            for name in sorted(names[:METRICS_MAX])
        },
        warnings=tuple(warnings),
    )


def _mean(values: Sequence[tuple[float, float]]) -> float:
    """Of what is finite; if nothing is, what there is. Never beyond the largest and the smallest of them."""
    finite = [(value, weight) for value, weight in values if math.isfinite(value)]
    if not finite:
        odd = {str(value): value for value, _ in values}
        return next(iter(odd.values())) if len(odd) == 1 else math.nan
    total = sum(weight for _, weight in finite)
    mean = sum(value * weight for value, weight in finite) / total
    if not math.isfinite(mean):  # the sum is beyond a float, the mean is not
        mean = sum(value * (weight / total) for value, weight in finite)
    numbers = [value for value, _ in finite]
    return min(max(mean, min(numbers)), max(numbers))
