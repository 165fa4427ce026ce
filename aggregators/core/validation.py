"""What `aggregate` is handed, looked through before anything is worked out: each fault is one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aggregators.core.options import RuleError, integral
from aggregators.core.sources import MatrixSource, RowsSource, Source, Widened

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class ValidatedInput:
    """`source` gives float32 or float64 that no gradient follows; `dtype` and `device` are the updates' own.

    `rows` is where the updates lie, as far as that is known.
    """

    source: Source
    dtype: torch.dtype
    device: torch.device
    rows: tuple[Tensor, ...]

    @property
    def wide(self) -> torch.dtype:
        """What is worked in."""
        return self.dtype if self.dtype.itemsize >= 4 else torch.float32

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.wide, device=self.device)


def enter(updates: object) -> ValidatedInput:
    """Of a matrix [n, d] or a source; of a source that is no more than that, one chunk is read."""
    if isinstance(updates, Tensor):
        if updates.dim() != 2:
            raise RuleError(f"updates are a matrix of floats, not {tuple(updates.shape)} {updates.dtype}")
        updates = MatrixSource(updates)
    elif not _is_source(updates):
        raise RuleError(
            f"updates are a matrix of floats, a tensor, or a source of its chunks, not a {type(updates).__name__}"
        )
    source: Source = updates  # type: ignore[assignment]  # it has what a source has
    if not source.n or not source.size:
        raise RuleError(f"there is nothing to aggregate: {source.n} updates of {source.size} coordinates")
    rows: tuple[Tensor, ...] = ()
    if isinstance(source, MatrixSource):
        first = _dense(source.matrix).detach()
        source, rows = MatrixSource(first), (first,)
    elif isinstance(source, RowsSource):
        first, rows = _dense(source.rows[0]), source.rows
    else:
        first = _dense(_first(source))
    if not isinstance(source, MatrixSource) or first.dtype.itemsize < 4:
        source = Widened(source)
    return ValidatedInput(source=source, dtype=first.dtype, device=first.device, rows=rows)


def _is_source(updates: object) -> bool:
    return all(hasattr(updates, name) for name in ("n", "size", "chunks"))


def _first(source: Source) -> Tensor:
    for _, X in source.chunks():
        return X
    raise RuleError("the source of updates has no chunk")


def _dense(X: Tensor) -> Tensor:
    if X.dtype not in _FLOATS or X.layout != torch.strided or X.device.type == "meta":
        raise RuleError(
            "updates are a matrix of floats, float64 to float16 or bfloat16, dense and with values, "
            f"not {X.dtype} ({X.layout}, {X.device.type})"
        )
    return X


def named(keys: Sequence[str] | None, n: int) -> list[str]:
    """Names of n rows: `keys`, or their numbers. Raises `RuleError` unless they are n different names."""
    names = [str(row) for row in range(n)] if keys is None else list(keys)
    if len(names) != n or len(set(names)) != n:
        raise RuleError(f"keys must be {n} different names")
    return names


def trusted_row(trusted: object, accepted: Tensor) -> int | None:
    """Which of the rows that are `accepted` [n] is the trusted one."""
    if trusted is None:
        return None
    row, n = integral(trusted), len(accepted)
    if row is None or not 0 <= row < n or not bool(accepted[row]):
        raise RuleError(
            f"the trusted update must be one of the {n}, a row's number, and finite: it is {trusted!r}"
        )
    return int(accepted[:row].sum())


def room(out: object, size: int, updates: ValidatedInput, state: Sequence[Tensor]) -> Tensor:
    """`out` itself, for writing to; `RuleError` unless the result fits there and nothing else lies there."""
    if not isinstance(out, Tensor):
        raise RuleError(f"out must be a tensor, not a {type(out).__name__}")
    found = (tuple(out.shape), out.dtype, out.device)
    if found != ((size,), updates.dtype, updates.device) or not out.is_contiguous():
        raise RuleError(
            f"out must be {size} {updates.dtype} side by side on {updates.device}, "
            f"not {tuple(out.shape)} {out.dtype} of strides {out.stride()} on {out.device}"
        )
    if any(_meet(out, tensor) for tensor in (*updates.rows, *state)):
        raise RuleError("out lies where an update or a state does, and those are never changed")
    return out.detach()


def _meet(out: Tensor, other: Tensor) -> bool:
    if other.device != out.device:
        return False
    ((start, stop),) = _spans(out)
    return any(start < last and first < stop for first, last in _spans(other))


def _spans(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """The bytes from the first to the last of a vector, or of each row of a matrix."""
    rows = tensor if tensor.dim() == 2 else tensor[None]
    for row in rows.detach():
        length = ((len(row) - 1) * row.stride(0) + 1) * row.element_size()
        yield row.data_ptr(), row.data_ptr() + length


def kept_vectors(state: object, names: Sequence[str], size: int) -> list[Tensor]:
    """Those of `names` [size] each, zeros where there is none; `RuleError` if one of them is none."""
    if not isinstance(state, Mapping):
        raise RuleError(f"the state must be a mapping of names to vectors, not a {type(state).__name__}")
    return [_kept(state.get(name), name, size) for name in names]


def _kept(vector: object, name: str, size: int) -> Tensor:
    if vector is None:
        return torch.zeros(size)
    if (
        not isinstance(vector, Tensor)
        or vector.shape != (size,)
        or vector.dtype not in _FLOATS
        or not bool(vector.isfinite().all())
    ):
        raise RuleError(f"the state {name!r} must be {size} finite numbers")
    return vector.detach()
