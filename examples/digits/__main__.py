"""$ python -m examples.digits [--robust]"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from examples.launch import launch

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.digits", description="Train digits on four sites."
    )
    parser.add_argument(
        "--robust", action="store_true", help="five sites, one of which lies; the rule resists"
    )
    if parser.parse_args().robust:
        liar = {"name": "sign-flip", "options": {"scale": 10}}
        return asyncio.run(launch(HERE / "run-robust.toml", peers=5, liar=liar))
    return asyncio.run(launch(HERE / "run.toml", peers=4))


if __name__ == "__main__":
    sys.exit(main())
