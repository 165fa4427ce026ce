"""The kinds of plug-in: the entry-point group of each, and what people call one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Kind:
    """`given` are the constructor's parameters that the caller fills in; every other field is an option."""

    group: str
    word: str
    given: tuple[str, ...] = ()


RULES = "muster.rules"
PRE_RULES = "muster.pre_rules"
PEER_RULES = "muster.peer_rules"
ATTACKS = "muster.attacks"
CODECS = "muster.codecs"
FEEDBACKS = "muster.feedbacks"
SAMPLERS = "muster.samplers"
SCHEDULES = "muster.schedules"
SERVER_OPTIMIZERS = "muster.server_optimizers"
ALGORITHMS = "muster.algorithms"
MECHANISMS = "muster.mechanisms"

KINDS: Mapping[str, Kind] = {
    kind.group: kind
    for kind in (
        Kind(group=RULES, word="aggregation rule", given=("faults",)),
        Kind(group=PRE_RULES, word="pre-rule", given=("faults",)),
        Kind(group=ATTACKS, word="attack"),
        Kind(group=PEER_RULES, word="peer-side rule", given=("faults",)),
        Kind(group=CODECS, word="codec"),
        Kind(group=FEEDBACKS, word="error feedback"),
        Kind(group=SAMPLERS, word="sampler"),
        Kind(group=SCHEDULES, word="schedule", given=("spec", "refuse")),
        Kind(group=SERVER_OPTIMIZERS, word="server optimizer", given=("version", "warming_up")),
        Kind(group=ALGORITHMS, word="local algorithm"),
        Kind(group=MECHANISMS, word="mechanism"),
    )
}

# Names that other platforms and papers use for what is installed here; a run spec keeps the name on the right.
ALIASES: Mapping[str, Mapping[str, str]] = {
    RULES: {
        **dict.fromkeys(("fedavg", "fed-avg", "average", "averaging", "avg", "weighted-mean"), "mean"),
        **dict.fromkeys(("coordinate-median", "coordinate-wise-median", "comed", "fedmedian"), "median"),
        **dict.fromkeys(
            ("trimmedmean", "trmean", "fedtrimmedavg", "coordinate-wise-trimmed-mean"), "trimmed-mean"
        ),
        **dict.fromkeys(("multikrum", "m-krum"), "multi-krum"),
        **dict.fromkeys(("geomed", "geometricmedian"), "geometric-median"),
        "centeredclipping": "centered-clipping",
        "fools-gold": "foolsgold",
    }
}


def word(group: str) -> str:
    """What people call a plug-in of this group: "codec"."""
    return KINDS[group].word if group in KINDS else "plug-in"
