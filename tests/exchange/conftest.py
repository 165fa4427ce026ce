"""Small models, update files and run specs on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import compressors
from exchange.admission import Expected
from exchange.contexts import ChunkContexts
from exchange.payload import GroupSpec, Manifest, PayloadWriter
from muster.model.layout import ParameterLayout
from muster.model.modelfile import layout_of, write_initial
from muster.spec.model import RunSpec

BASE = "b" * 64


@pytest.fixture
def make_spec() -> Callable[..., RunSpec]:
    def make(**tables: Any) -> RunSpec:
        return RunSpec.model_validate({"task": "some.where:Task", "rounds": 2, **tables})

    return make


class Bench:
    """A model of `size` coordinates (more than one chunk by default) and updates for it."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        torch.manual_seed(0)
        self.model = nn.Linear(size, 1, bias=False)
        self.layout: ParameterLayout = layout_of(self.model)
        self.base = folder / "base.safetensors"
        write_initial(self.base, self.layout, self.model)

    def expected(self, spec: RunSpec, source_digest: str = "") -> Expected:
        return Expected(
            assignment_id="run.1.peer.1",
            peer_id="peer",
            run_id="run",
            round=1,
            base_version=0,
            base_digest=BASE,
            layout=self.layout,
            spec=spec,
            source_digest=source_digest,
        )

    def update(
        self,
        name: str,
        vector: Tensor,
        codec: str = "identity",
        *,
        scalars: Mapping[str, float] | None = None,
        contexts: ChunkContexts | None = None,
        **manifest: Any,
    ) -> Path:
        """Encoded where `contexts` has it, if it is given."""
        path = self.folder / name
        built = compressors.build(codec)
        facts: dict[str, Any] = {
            "run_id": "run",
            "round": 1,
            "assignment_id": "run.1.peer.1",
            "base_digest": BASE,
            "layout_digest": self.layout.digest,
            "groups": (GroupSpec(name="params", codec=built.spelling, size=len(vector)),),
            "scalars": {"examples": 10.0, "metric/loss": 0.5} if scalars is None else scalars,
            **manifest,
        }
        writer = PayloadWriter(path, Manifest(**facts))
        for index, chunk in enumerate(vector.split(1 << 18)):
            bound = built if contexts is None else built.at(contexts.at(index))
            writer.append("params", bound.encode(chunk, seed=0))
        writer.finish()
        return path


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, (1 << 18) + 1000)
