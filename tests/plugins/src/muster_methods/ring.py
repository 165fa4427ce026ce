"""Gossip on a ring, or any graph: peers that admit and mix each other's updates with `exchange`, and no coordinator.

    y_i = x_i + training                    handed to the neighbours as y_i - x_0: all can draw version 0
    x_i <- W_ii y_i + sum_j W_ij y_j        over the neighbours j whose update was admitted
    W_ij = 1 / (1 + max(deg_i, deg_j)),  W_ii = 1 - sum_j W_ij

Lian et al., Can Decentralized Algorithms Outperform Centralized Algorithms?, NeurIPS 2017; Metropolis weights: Xiao,
Boyd, Lall, A Scheme for Robust Distributed Sensor Fusion Based on Average Consensus, IPSN 2005.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from exchange import algorithms, mixing
from exchange.contribution import RoundContext
from muster.errors import MusterError
from muster.files.digests import digest_file
from muster.model.initial import draw_version
from muster.model.modelfile import ModelFile, load_into
from muster.seeds import assignment_seed, initial_seed
from muster.spec.model import RunSpec
from muster.task.task import Site, Task
from muster.transfer.streams import fetch, read_chunks
from muster.transport import EVERYBODY, CallContext, Route, Transport
from muster.wire import FETCH_MODEL
from protos.v1 import models_pb2 as pb
from protos.v1.tensors_pb2 import BlobHeader


@dataclass(kw_only=True)
class RingPeer:
    """`graph` has the neighbours of everybody. `losses` are of each round's training; `missed` tells whose update was
    not mixed in which round, and the id of the error."""

    name: str
    graph: Mapping[str, Sequence[str]]
    folder: Path
    spec: RunSpec
    task: Task
    data: Mapping[str, Any]
    transport: Transport
    losses: list[float] = field(default_factory=list[float])
    missed: list[tuple[int, str, str]] = field(default_factory=list[tuple[int, str, str]])

    async def run(self) -> str:
        """All rounds; the digest of the model that this peer ends with. `server` goes on serving."""
        self.folder.mkdir()
        self._start = self.version = self.folder / "version0"
        drawn = draw_version(self.task, initial_seed(self.spec.seed), self._start)
        self._model, self._layout, self._digest = drawn.model, drawn.layout, drawn.info.digest
        self._site = Site(name=self.name, data=self.data)
        self._examples = self.task.train_data(self._site)
        self._ready: dict[str, Path] = {}  # by the round, as it is asked for
        self._news = asyncio.Condition()
        route = Route(method=FETCH_MODEL, handle=self._serve, allows=EVERYBODY)
        self.server = await self.transport.serve(self.name, [route])
        for number in range(1, self.spec.rounds + 1):
            path = await asyncio.to_thread(self.train, number)
            async with self._news:
                self._ready[str(number)] = path
                self._news.notify_all()
            heard = await asyncio.gather(*(self._hear(number, name) for name in self.graph[self.name]))
            await asyncio.to_thread(self._mix, number, [self.name, *filter(None, heard)])
        return digest_file(self.version)

    def train(self, number: int) -> Path:
        """From its present version on; the update file."""
        seed = assignment_seed(self.spec.seed, "train", number, self.name)
        context = RoundContext(
            site=self._site,
            device=torch.device("cpu"),
            seed=seed,
            train=self.spec.train.model_dump(),
            progress=lambda _share: None,
            generator=torch.Generator().manual_seed(seed),
        )
        request = mixing.UpdateRequest(
            **self._asked(number, self.name),
            codec=self.spec.compression.up,
            feedback="none",
            seed=seed,
            update=self.folder / f"{number}.{self.name}.update",
            staged=str(self.folder / f"{number}.state"),
        )
        with closing(ModelFile(self._start)) as start, closing(ModelFile(self.version)) as held:
            load_into(self._model, held)
            algorithm = algorithms.build(self.spec.train.algorithm, self.spec.train.options)
            contribution = algorithm.fit(self.task, self._model, self._examples, context)
            mixing.write_update(request, self._model, start, contribution)
        self.losses.append(contribution.report.metrics["loss"])
        return request.update

    def _asked(self, number: int, peer: str) -> dict[str, Any]:
        """What a peer's update is made for, and admitted as."""
        base = {"base_version": 0, "base_digest": self._digest}
        return {"run_id": "ring", "round": number, "assignment_id": f"{number}.{peer}", **base}

    async def _serve(self, requests: AsyncIterator[Any], _: CallContext) -> AsyncIterator[Any]:
        """This peer's own update of a round, once it is there."""
        request: pb.FetchModelRequest = await anext(requests)
        async with self._news:
            await self._news.wait_for(lambda: request.digest in self._ready)
        path = self._ready[request.digest]
        header = BlobHeader(size_bytes=path.stat().st_size, digest=digest_file(path), offset=request.offset)
        yield pb.FetchModelResponse(header=header)
        async for chunk in read_chunks(path, request.offset):
            yield chunk

    async def _hear(self, number: int, peer: str) -> str | None:
        """The neighbour, if its update has come in time and is admitted."""
        path, channel = self.folder / f"{number}.{peer}.update", self.transport.connect(peer)
        try:
            header = await fetch(
                channel,
                FETCH_MODEL,
                lambda offset: pb.FetchModelRequest(digest=str(number), offset=offset),
                path,
                timeout_seconds=self.spec.round.deadline_seconds,
                size=range(1, mixing.update_bytes_max(self.spec, self._layout, 0) + 1),
            )
            asked = self._asked(number, peer)
            expected = mixing.Expected(**asked, peer_id=peer, layout=self._layout, spec=self.spec)
            await asyncio.to_thread(mixing.admit, path, header.digest, expected)
        except MusterError as error:  # it is away, or what it sends does not pass; the others go on
            self.missed.append((number, peer, error.id))
            return None
        finally:
            await channel.close()
        return peer

    def _mix(self, number: int, heard: list[str]) -> None:
        degrees = {name: len(others) for name, others in self.graph.items()}
        shares = {name: 1 / (1 + max(degrees[self.name], degrees[name])) for name in sorted(heard)}
        shares[self.name] += 1 - sum(shares.values())
        base = mixing.UpdateBase(version=0, digest=self._digest, round=number)
        files = {name: self.folder / f"{number}.{name}.update" for name in shares}
        one = mixing.UpdateInput(assignment_id="", peer_id="", path=self._start, examples=1, base=base)
        updates = [replace(one, peer_id=name, path=files[name], weight=shares[name]) for name in shares]
        delta, version = self.folder / f"{number}.delta", self.folder / f"{number}.version"
        mixing.mix(self.spec, self._start, updates, base_digest=self._digest, round=number, out=delta)
        mixing.apply(self._start, delta, version)
        self.version = version
