"""What `import muster` gives, and what it does not cost."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import muster


def test_every_public_name_is_there() -> None:
    assert set(muster.__all__) <= set(dir(muster))
    for name in muster.__all__:
        assert getattr(muster, name) is not None
    assert muster.__version__ == version("muster-fl")
    assert issubclass(muster.Task, object) and issubclass(muster.MusterError, Exception)


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Tusk'"):
        _ = muster.Tusk  # type: ignore[attr-defined]  # pyright: ignore[reportUnknownVariableType]


def test_importing_it_costs_nothing() -> None:
    code = (
        "import sys, muster, muster.errors, muster.task; muster.Task, muster.Site, muster.MusterError\n"
        "print(', '.join({'torch', 'numpy', 'pydantic', 'grpc', 'structlog'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ended.stdout.strip() == ""
