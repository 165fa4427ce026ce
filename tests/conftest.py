"""What holds for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

pytest_plugins = ["tests.postgres", "tests.fake_plugins"]


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A test that configures logging leaves it to no other: what a federation prints depends on it."""
    yield
    structlog.reset_defaults()
