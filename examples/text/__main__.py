"""$ python -m examples.text"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from examples.launch import launch

if __name__ == "__main__":
    sys.exit(asyncio.run(launch(Path(__file__).parent / "run.toml", peers=4)))
