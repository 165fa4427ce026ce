"""Plug-ins of a package that is not installed: `plug_in(group, name, cls)` registers a class for one test."""

from __future__ import annotations

import importlib.metadata
import sys
import types
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from compressors.core import registry as codecs
from methods import registry

PlugIn = Callable[[str, str, Any], None]


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[PlugIn]:
    """A function that makes an entry point of a group name a class, beside those that are installed."""
    added: list[EntryPoint] = []

    def points(*, group: str) -> list[EntryPoint]:
        own = [point for point in added if point.group == group]
        return [*importlib.metadata.entry_points(group=group), *own]

    def forget() -> None:
        registry.installed.cache_clear()
        for made in (codecs.build, codecs.build_feedback):
            made.cache_clear()

    def register(group: str, name: str, cls: Any) -> None:
        module = types.ModuleType(f"a_users_own_{len(added)}")
        vars(module)["Plugin"] = cls
        monkeypatch.setitem(sys.modules, module.__name__, module)
        added.append(EntryPoint(name, f"{module.__name__}:Plugin", group))
        forget()

    monkeypatch.setattr(registry, "entry_points", points)
    yield register
    forget()
