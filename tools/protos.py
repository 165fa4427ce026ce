"""Generates the Python code of `protos/v1` (messages, services, types) beside the `.proto` files.

    python -m tools.protos [FOLDER]

Run from the repository root: imports in the generated code are paths below it. The tests generate into a
folder of their own and compare.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped]  # ships no types


def generate(target: Path) -> None:
    """Writes `target/protos/v1/*_pb2*`. Raises `SystemExit` where the compiler refuses a file."""
    scripts = Path(sysconfig.get_path("scripts"))
    sources = sorted(str(path) for path in Path("protos/v1").glob("*.proto"))
    arguments = [
        "protoc",
        "-I.",
        f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
        *(f"--{kind}_out={target}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")),
        *sources,
    ]
    if code := protoc.main(arguments):
        sys.exit(f"protoc ended with status {code}")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
