"""A run as one JSON document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cli.client import Client
from cli.json_form import to_json
from cli.progress import progress_bar
from cli.settings import Settings
from cli.target import written
from protos.v1 import admin_pb2 as pb

FORMAT = "muster.run/1"  # raised when a reader of the old form would misread the new one


async def collect(client: Client, settings: Settings, run: pb.Run) -> dict[str, Any]:
    """`format`, `run` (totals), `spec`, `rounds` (with assignments), `models`, `metrics` (a row for each round that
    was evaluated) and `events`."""
    totals = to_json(await client.run(run.run_id))  # with its warnings
    spec = totals.pop("spec")
    numbers = [each.number for each in await client.rounds(run.run_id)]
    rounds: list[dict[str, Any]] = []
    with progress_bar(settings, "rounds") as show:
        for number in numbers:
            rounds.append(to_json(await client.round(run.run_id, number)))
            show(len(rounds), len(numbers))
    events = [to_json(event) async for batch in client.events(run_id=run.run_id) for event in batch]
    return {
        "format": FORMAT,
        "run": totals,
        "spec": spec,
        "rounds": rounds,
        "models": [to_json(model) for model in await client.models(run.run_id)],
        "metrics": [{"round": each["number"], **each["metrics"]} for each in rounds if each["metrics"]],
        "events": events,
    }


def write_document(path: Path, document: dict[str, Any]) -> None:
    """The whole file or none of it. Raises `StorageError`."""

    def write(partial: Path) -> None:
        with partial.open("w", encoding="utf-8") as file:
            json.dump(document, file, indent=1, ensure_ascii=False, allow_nan=False)
            file.write("\n")

    written(path, write)
