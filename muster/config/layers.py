"""Configuration laid over itself: files, environment and flags, each value with where it was said."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from muster.spec.lines import KeyPath, key_lines
from muster.spec.load import line_of, parse_toml, read_toml
from muster.spec.problems import model_at

DEFAULT = "default"
PREFIX = "MUSTER_"

_VARIABLE = re.compile(rf"{PREFIX}[A-Z0-9]+__\w+")


@dataclass
class Layers:
    """Values merged so far, the last word winning key by key, and the place of each: "FILE:LINE", a variable, a flag.

    Relative paths in a file count from its folder, others from the folder of the process.
    """

    model: type[BaseModel]
    values: dict[str, Any] = field(default_factory=dict[str, Any])
    places: dict[KeyPath, str] = field(default_factory=dict[KeyPath, str])

    def add_file(self, path: Path) -> None:
        """Raises `ConfigError` "config.not_found", "config.unreadable", "config.invalid" (not TOML)."""
        text = read_toml(path, "config", "config file")
        data = parse_toml(text, str(path), "config.invalid")
        lines = key_lines(text)
        for key, value in _leaves(data):
            self._set(key, self._anchored(key, value, path.parent), f"{path}:{line_of(key, lines)}")

    def add_environment(self, environment: Mapping[str, str]) -> None:
        """`MUSTER_SECTION__KEY=value`; the value is text where the key wants text, and TOML or else text elsewhere."""
        for name in sorted(filter(_VARIABLE.fullmatch, environment)):
            key: KeyPath = tuple(name.removeprefix(PREFIX).lower().split("__"))
            value = environment[name] if self._wants_text(key) else _toml_or_text(environment[name])
            self._set(key, self._anchored(key, value, Path.cwd()), f"environment {name}")

    def add_flags(self, flags: Mapping[str, Any]) -> None:
        """Nested like a file's tables, or with a dotted key in a section; what is None was not given."""
        for (section, *names), value in _leaves(flags):
            if value is not None:
                key: KeyPath = (section, *str(names[0]).split("."), *names[1:]) if names else (section,)
                plain = [str(v) if isinstance(v, Path) else v for v in value] if _listed(value) else value
                plain = str(plain) if isinstance(plain, Path) else plain
                flag = "--" + str(key[-1]).replace("_", "-")
                self._set(key, self._anchored(key, plain, Path.cwd()), f"flag {flag}")

    def origin(self, path: KeyPath) -> str:
        """Where the key at `path` was said, or the last key within it; "default" if none was."""
        inside = [place for key, place in self.places.items() if key[: len(path)] == path]
        return inside[-1] if inside else DEFAULT

    def place(self, path: KeyPath) -> str:
        """Where to look for a mistake at `path`: its origin; of a key that is missing, that of its table."""
        found = self.origin(path)
        return self.place(path[:-1]) if found == DEFAULT and len(path) > 1 else found

    def _set(self, path: KeyPath, value: Any, place: str) -> None:
        table = self.values
        for depth, part in enumerate(path[:-1], start=1):
            inner = table.get(str(part))
            if not isinstance(inner, dict):
                inner = table[str(part)] = {}
                self.places.pop(path[:depth], None)
            table = inner
        table[str(path[-1])] = value
        for key in [key for key in self.places if key[: len(path)] == path]:
            del self.places[key]
        self.places[path] = place

    def _annotation(self, path: KeyPath) -> Any:
        table = model_at(self.model, path[:-1])
        found = table.model_fields.get(str(path[-1])) if table is not None else None
        return found.annotation if found is not None else None

    def _wants_text(self, path: KeyPath) -> bool:
        annotation = self._annotation(path)
        return annotation in (str, Path) or get_origin(annotation) is Literal

    def _anchored(self, path: KeyPath, value: Any, folder: Path) -> Any:
        if not _holds_paths(self._annotation(path)):
            return value
        if isinstance(value, str):
            return os.path.normpath(folder.absolute() / Path(value).expanduser())
        return [self._anchored(path, inner, folder) for inner in value] if _listed(value) else value


def _leaves(data: Mapping[str, Any], above: KeyPath = ()) -> list[tuple[KeyPath, Any]]:
    """An empty section says nothing; an empty table within one is a value like any other."""
    found: list[tuple[KeyPath, Any]] = []
    for key, value in data.items():
        path = (*above, key)
        if isinstance(value, Mapping) and (value or not above):
            found += _leaves(value, path)
        else:
            found.append((path, value))
    return found


def _toml_or_text(text: str) -> Any:
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return found["value"] if set(found) == {"value"} else text


def _holds_paths(annotation: Any) -> bool:
    if get_origin(annotation) in (tuple, Union, UnionType):
        return any(_holds_paths(inner) for inner in get_args(annotation))
    return annotation is Path


def _listed(value: Any) -> bool:
    return isinstance(value, list | tuple)
