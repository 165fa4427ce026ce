"""An order whose files are handed to a worker of another user, and what that worker makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from muster.errors import TaskError
from muster.worker.handover import Exchange
from peer.work.orders import DrawOrder, EvaluateOrder, Order, TrainOrder


def lent(order: Order, exchange: Exchange) -> Order:
    """The same with the paths that the worker can reach. Raises `StorageError`."""
    if isinstance(order, DrawOrder):
        return replace(order, base=exchange.place(order.base))
    order = replace(order, base=exchange.lend(order.base))
    if isinstance(order, EvaluateOrder):
        return replace(order, state={key: exchange.lend(path) for key, path in order.state.items()})
    if isinstance(order, TrainOrder):
        return replace(
            order,
            state={key: exchange.lend(path) for key, path in order.state.items()},
            received={name: exchange.lend(path) for name, path in order.received.items()},
            factor=None if order.factor is None else exchange.lend(order.factor),
            update=exchange.place(order.update),
            staged=exchange.place(order.staged),
        )
    return order


async def taken(order: Order, result: Mapping[str, Any], exchange: Exchange) -> dict[str, Any]:
    """The result, its files where the order wanted them. Raises as `Exchange.take` does."""
    if isinstance(order, DrawOrder):
        await exchange.take(order.base)
    if not isinstance(order, TrainOrder):
        return dict(result)
    await exchange.take(order.update)
    staged: dict[str, str] = {}
    for key, made in result["staged"].items():
        name, wanted = Path(made).name, Path(order.staged)
        if not name.startswith(f"{wanted.name}."):
            raise TaskError("worker.bad_file", f"the job names {name!r} as state, which nobody ordered")
        staged[key] = str(wanted.with_name(name))
        await exchange.take(staged[key])
    return {**result, "staged": staged}
