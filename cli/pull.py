"""Fetching a model version and leaving it as a file that plain PyTorch loads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cli.client import Client
from cli.progress import progress_bar
from cli.settings import Settings
from cli.target import beside, target, written
from muster.errors import DeadlineError, NotFoundError, UsageError
from muster.wire import ADMIN
from protos.v1 import admin_pb2 as pb

OnProgress = Callable[[int, int], None]  # bytes here, bytes in all

STALL_SECONDS = 60.0  # a restarted coordinator is back long before


async def pull_model(
    client: Client, settings: Settings, which: str, output: Path | None
) -> tuple[pb.Model, Path]:
    """`which` is "RUN" or "RUN@ROUND". The bytes go to a file beside `output` that carries the digest in its
    name, so that a later call goes on with it; `output` itself appears whole or not at all.

    Raises `NotFoundError`, `UsageError`, `TransferError`, `StorageError`.
    """
    name, at, number = which.rpartition("@")
    run = await client.find_run(name if at else which)
    model = _choose(run.run_id, await client.models(run.run_id), number if at else None)
    path = target(settings, output, f"{run.run_id}-{model.round}.safetensors")
    body = beside(path, f"{model.digest[:16]}.part")

    def request_at(offset: int) -> pb.PullModelRequest:
        return pb.PullModelRequest(run_id=run.run_id, round=model.round, offset=offset)

    with progress_bar(settings, path.name, bytes_unit=True) as show:
        await _fetch(client, request_at, body, model.digest, show)
    _convert(body, path)
    body.unlink()
    return model, path


async def _fetch(
    client: Client,
    request_at: Callable[[int], pb.PullModelRequest],
    body: Path,
    digest: str,
    show: OnProgress,
) -> None:
    """However long it takes, as long as it goes on."""
    from muster.transfer.streams import fetch

    here = 0

    def progress(count: int, total: int) -> None:
        nonlocal here
        here = count
        show(count, total)

    while True:
        before = here
        try:
            await fetch(
                client.channel,
                ADMIN["PullModel"],
                request_at,
                body,
                timeout_seconds=STALL_SECONDS,
                digest=digest,
                on_progress=progress,
            )
            return
        except DeadlineError:
            if here == before:
                raise


def _choose(run_id: str, models: Sequence[pb.Model], number: str | None) -> pb.Model:
    """The newest, or that of a round."""
    if number is not None and not number.isdecimal():
        raise UsageError("cli.usage", f"{number!r} is not a round", fix=f"muster model pull {run_id}@3")
    found = [model for model in models if number is None or model.round == int(number)]
    if not found:
        what = "no model yet" if number is None else f"no model of round {number}"
        raise NotFoundError(
            "model.not_found", f"run {run_id!r} has {what}", fix=f"muster model list {run_id}"
        )
    model = max(found, key=lambda model: model.version)
    if model.pruned:
        kept = [str(each.round) for each in models if not each.pruned]
        raise NotFoundError(
            "model.pruned",
            f"the model of round {model.round} of run {run_id!r} is kept no longer",
            cause=f"those of rounds {', '.join(kept)} are" if kept else "none of this run's is",
            fix=f"muster model list {run_id}; coordinator.models_keep says how many are kept of the next run",
        )
    return model


def _convert(body: Path, path: Path) -> None:
    """The coordinator's float32 vector to named tensors in the model's own dtypes."""
    from safetensors.torch import save_file

    from muster.model.modelfile import ModelFile, export_state

    file = ModelFile(body)
    try:
        tensors = export_state(file)
        written(path, lambda partial: save_file(tensors, partial, metadata={"format": "pt"}))
    finally:
        file.close()
