from __future__ import annotations

import traceback
from types import CodeType

import torch

from muster.task.tracebacks import own_frame
from muster.transfer.chunks import __file__ as ours

MINE = "/home/ann/flowers/task.py"


def code(source: str, path: str) -> CodeType:
    return compile(source, path, "exec")


def raised(source: str) -> str:
    space: dict[str, object] = {"torch": torch}
    exec(code(source, MINE), space)
    try:
        space["run"]()  # type: ignore[operator]
    except Exception as error:
        return "".join(traceback.format_exception(error))
    raise AssertionError("it did not raise")


def test_it_is_the_deepest_frame_of_the_users_own() -> None:
    assert (
        own_frame(raised("def data():\n    return 1 / 0\n\n\ndef run():\n    data()\n"))
        == f"{MINE}, line 2, in data"
    )


def test_libraries_and_python_below_it_do_not_count() -> None:
    assert own_frame(raised("def run():\n    torch.ones(2) @ torch.ones(3)\n")) == f"{MINE}, line 2, in run"
    assert own_frame(raised("import json\ndef run():\n    json.loads('{')\n")) == f"{MINE}, line 3, in run"


def test_nor_do_our_own_files() -> None:
    frames = f'  File "{MINE}", line 7, in loss\n    x\n  File "{ours}", line 9, in step\n    y\n'
    assert (
        own_frame(f"Traceback (most recent call last):\n{frames}ValueError: z\n")
        == f"{MINE}, line 7, in loss"
    )


def test_of_tracebacks_in_a_row_the_last_counts() -> None:
    source = (
        "def run():\n    try:\n        1 / 0\n    except Exception as e:\n        raise ValueError() from e\n"
    )
    assert own_frame(raised(source)) == f"{MINE}, line 5, in run"


def test_without_any_it_is_empty() -> None:
    assert own_frame("") == own_frame("ValueError: no traceback") == ""
    assert (
        own_frame(f'Traceback (most recent call last):\n  File "{ours}", line 9, in step\nValueError\n') == ""
    )
