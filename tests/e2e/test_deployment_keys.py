"""Processes of a scaffolded deployment talk while their authority is replaced under them."""

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from node_machines import MESSAGES, Vote

from veilgrid.machine import NodeId
from veilgrid.node import scaffold
from veilgrid.node.keys import KeyFolder, Step
from veilgrid.node.settings import read_settings
from veilgrid.node.transport import Endpoint, Limits
from veilgrid.node.wire import Codec

NAMES = (NodeId("party-1"), NodeId("party-2"))
STEPS: tuple[Step, ...] = ("introduce", "switch", "retire")
FAST = Limits(backoff_min_s=0.002, backoff_max_s=0.02)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("veilgrid.node.attest")
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(logging.NOTSET)


class Process:
    """An endpoint that takes all it needs from a file of the deployment."""

    def __init__(self, path: Path) -> None:
        self.settings = read_settings(path)
        self.numbers: list[int] = []
        self.endpoint = Endpoint(
            self.settings.node,
            self.settings.credentials,
            Codec(MESSAGES),
            self._take,
            limits=FAST,
        )
        self.endpoint.after_reading = self.endpoint.flush
        self.endpoint.listen()

    def _take(self, peer: NodeId, message: Any, receipt: tuple[bytes, int]) -> None:
        self.numbers.append(message.round)
        self.endpoint.acknowledge(peer, receipt)

    def meet(self, other: "Process") -> None:
        peers = [one for one in self.settings.peers() if one.node == other.settings.node]
        self.endpoint.update_peers(replace(one, port=other.endpoint.port) for one in peers)


async def _replace_authority(folder: Path) -> tuple[list[int], list[int], int]:
    one, other = (Process(folder / "nodes" / f"{name}.toml") for name in NAMES)
    one.meet(other)
    other.meet(one)
    number = 0
    for step in (None, *STEPS):
        if step is not None:
            KeyFolder.open(folder).replace_authority(step)
        for process in (one, other):  # One after the other: between them is the critical moment.
            process.endpoint.rotate(process.settings.credentials)
            for mine, name in ((one, NAMES[1]), (other, NAMES[0])):
                mine.endpoint.send(name, Vote(number, 0))
                mine.endpoint.flush()
            number += 1
            async with asyncio.timeout(10):
                while min(len(one.numbers), len(other.numbers)) < number:
                    await asyncio.sleep(0.002)
    connections = one.endpoint.metrics.connections
    for process in (one, other):
        await process.endpoint.close()
    await asyncio.sleep(0)
    return one.numbers, other.numbers, connections


@pytest.mark.parametrize("is_sealed", [False, True])
def test_messages_flow_at_every_step_of_a_new_authority(tmp_path: Path, is_sealed: bool) -> None:
    """With keys in plain files, and sealed under a root that lies elsewhere."""
    counts: dict[Any, int] = {"operator": 1, "site": 1, "party": 3}
    plan = scaffold.Plan(
        name="d",
        scenario="six-bus",
        buses=("a",),
        counts=counts,
        software_root=tmp_path / "root",
        is_sealed=is_sealed,
    )
    scaffold.create(tmp_path / "d", plan)
    one, other, connections = asyncio.run(_replace_authority(tmp_path / "d"))
    assert one == other == list(range(8))
    assert connections >= 4
