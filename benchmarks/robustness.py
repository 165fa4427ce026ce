"""What accuracy each rule keeps under the worst of many attacks, on the digits of sklearn.

    python -m benchmarks.robustness
    python -m benchmarks.robustness --rules arc+nnm+trimmed-mean nnm+krum --settings 0:3 --seeds 5 --markdown

Ten honest peers and f faulty ones train an MLP of 2410 parameters for 200 rounds of one batch each, with worker
momentum (`benchmarks/robust_digits.py`). A setting SIMILARITY:FAULTS says which share of the examples is dealt at
random, the rest in the order of the labels, and what f is. A rule's accuracy under a seed is that under its worst
attack; shown are the mean and the least over the seeds, then each attack's mean. A backdoor hardly costs accuracy: of
it the share of marked examples is shown that are taken for the attacker's class.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, TypeAlias

import torch

from aggregators import RuleError
from aggregators.core import registry
from benchmarks.common import parser, report, say
from benchmarks.robust_digits import Defence, Trial

SETTINGS = ("1:3", "0.33:2", "0:3")
PRE = ("", "nnm", "arc+nnm")
ATTACKS = (
    "none",
    "sign-flip",
    "label-flip",
    "optimal-ipm",
    "optimal-alie",
    "online-mimic",
    "min-max",
    "fang",
    "anti-cge",
)
BACKDOOR = "backdoor"
QUICK_RULES = ("mean", "trimmed-mean", "nnm+trimmed-mean", "arc+nnm+trimmed-mean")

Found: TypeAlias = dict[str, float] | str  # a trial's figures, or why its rule refuses
Trials: TypeAlias = Mapping[str, list[Future[Found]]]  # of each attack, one for each seed


def spellings(pre: list[str]) -> list[str]:
    """Every rule behind each of the pre-rules, where it can stand."""
    found: list[str] = []
    for before in pre:
        for rule in registry.names(registry.RULES):
            spelling = "+".join(part for part in (before, rule) if part)
            try:
                Defence(spelling, 2)
            except RuleError as error:
                say(f"{spelling} is left out: {error}")
            else:
                found.append(spelling)
    return found


def submit(pool: ProcessPoolExecutor, arguments: Namespace, rule: str, setting: str) -> Trials:
    similarity, faults = setting.split(":")
    return {
        attack: [
            pool.submit(
                Trial(
                    rule=rule,
                    attack=attack,
                    similarity=float(similarity),
                    faults=int(faults),
                    seed=seed,
                    steps=arguments.steps,
                    search_every=arguments.search_every,
                ).run
            )
            for seed in range(arguments.seeds)
        ]
        for attack in (*arguments.attacks, BACKDOOR)
    }


def row_of(rule: str, setting: str, trials: Trials) -> dict[str, Any]:
    """One line of the table, in percent."""
    done = {attack: [future.result() for future in futures] for attack, futures in trials.items()}
    row: dict[str, Any] = {"rule": rule, "setting": setting}
    figures: dict[str, list[float]] = {}
    for attack, found in done.items():
        name = "success" if attack == BACKDOOR else "accuracy"
        values = [100 * each[name] for each in found if isinstance(each, dict)]
        if len(values) < len(found):
            return {**row, "refused": next(each for each in found if isinstance(each, str))}
        figures[attack] = values
    success = figures.pop(BACKDOOR)
    worst = [min(values) for values in zip(*figures.values(), strict=True)]
    means = {attack: round(statistics.fmean(values), 1) for attack, values in figures.items()}
    return {
        **row,
        "worst_mean": round(statistics.fmean(worst), 1),
        "worst_min": round(min(worst), 1),
        "by": min(means, key=means.__getitem__),
        **means,
        "backdoor_success": round(statistics.fmean(success), 1),
    }


def measure(arguments: Namespace) -> Iterator[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        arguments.processes, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        submitted = [
            (rule, setting, submit(pool, arguments, rule, setting))
            for setting in arguments.settings
            for rule in arguments.rules
        ]
        for rule, setting, trials in submitted:
            row = row_of(rule, setting, trials)
            say(
                row["refused"]
                if "refused" in row
                else f"{setting} {rule}: {row['worst_mean']} by {row['by']}"
            )
            yield row


def markdown(rows: list[dict[str, Any]]) -> None:
    names = list(rows[0])
    print("| " + " | ".join(name.replace("_", " ") for name in names) + " |")
    print("|" + "|".join("---" if name in {"rule", "setting", "by"} else "---:" for name in names) + "|")
    for row in rows:
        print("| " + " | ".join(str(row[name]) for name in names) + " |")


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--rules", nargs="+", help="with their pre-rules; default: all that are installed")
    options.add_argument(
        "--pre", nargs="+", default=list(PRE), help="pre-rules before every rule; '' for none"
    )
    options.add_argument("--settings", nargs="+", default=list(SETTINGS), help="SIMILARITY:FAULTS")
    options.add_argument("--attacks", nargs="+", default=list(ATTACKS))
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--search-every", type=int, default=10, help="rounds between two searches")
    options.add_argument("--processes", type=int, default=os.cpu_count())
    options.add_argument("--markdown", action="store_true", help="a table for a page")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.rules = arguments.rules or list(QUICK_RULES)
        arguments.seeds = 1
        arguments.settings = arguments.settings[:2]
    arguments.rules = arguments.rules or spellings(arguments.pre)
    began = time.monotonic()
    rows = list(measure(arguments))
    say(f"{time.monotonic() - began:.0f} seconds")
    held = [row for row in rows if "refused" not in row]
    if arguments.markdown and held:
        markdown(held)
    else:
        report(rows if arguments.json else held, as_json=arguments.json)


if __name__ == "__main__":
    main()
