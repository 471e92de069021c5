"""The benchmark ``ledger``: four validators as processes with mutual TLS and real journals."""

import statistics
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final

from veilgrid.cli._bench_cometbft import cometbft_rows
from veilgrid.errors import RunAborted
from veilgrid.ledger.workload import VALIDATOR, Load
from veilgrid.machine import NodeId
from veilgrid.node.cometbft.engine import HOW, find_engine
from veilgrid.node.local import Deployment, ProcessResult, ProcessSpec

_MODULE: Final = "veilgrid.ledger"
_TIMEOUT_S: Final = 300.0


def _specs(validators: int, loads: list[Load]) -> list[ProcessSpec]:
    replicas = [
        ProcessSpec(
            node=NodeId(f"{VALIDATOR}-{index}"),
            factory=f"{_MODULE}.workload:build_quiet",
            messages=f"{_MODULE}.message:MESSAGES",
            records=f"{_MODULE}.journalled:RECORDS",
            role="validator",
            outcome_count=0,
            compute_threads=0,
        )
        for index in range(1, validators + 1)
    ]
    clients = [
        ProcessSpec(
            node=NodeId(f"client-{index}"),
            factory=f"{_MODULE}.workload:build_client",
            messages=f"{_MODULE}.message:MESSAGES",
            records=f"{_MODULE}.journalled:RECORDS",
            arguments=load,
            role="site",
            outcome_count=load.request_count,
            compute_threads=0,
        )
        for index, load in enumerate(loads, 1)
    ]
    return [*replicas, *clients]


def _measured(validators: int, loads: list[Load]) -> tuple[list[ProcessResult], ...]:
    """Run the loads against validators; return the results of validators and of clients."""
    with Deployment(_specs(validators, loads)) as deployment:
        deployment.start()
        if not deployment.wait(_TIMEOUT_S):
            raise RunAborted(f"the load did not end within {_TIMEOUT_S:.0f} s")
        results = deployment.stop()
    clients = results[validators:]
    for result, load in zip(clients, loads, strict=True):
        if sorted(result.outcomes) != list(range(1, load.request_count + 1)):
            raise RunAborted(f"{result.node} did not get every answer: {result.stderr}")
    return results[:validators], clients


def _extra(replicas: list[ProcessResult], operations: int) -> dict[str, Any]:
    return {
        "validators": len(replicas),
        "operations": operations,
        "megabytes": max(result.octets_sent for result in replicas) / 1e6,
        "memory_mib": max(result.peak_memory_octets for result in replicas) / 2**20,
        "processor_seconds": max(result.processor_seconds for result in replicas),
    }


def _loads(batched: int) -> list[tuple[str, list[Load]]]:
    return [
        ("operations, 64 a request", [Load(max(1, batched // 64), 64, 16)]),
        ("operations, one a request, 4 clients", [Load(max(1, batched // 16), 1, 16)] * 4),
    ]


def bench_ledger(
    requests: int,
    batched: int,
    validators: int = 4,
    engine: str = "auto",
    told: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Return the rows of ``veilgrid bench ledger``.

    Parameters
    ----------
    requests
        One operation each, one after the other: their median is the commit time as a client
        sees it, signatures, TLS and synced journals included.
    batched
        Operations in requests of 64, from one client with 16 requests under way.
    validators
        3f + 1.
    engine
        ``pbft``: our own replicas. ``cometbft``: the same application under CometBFT, as ``ours``.
        ``auto``: our own, with CometBFT as peer where it is installed.
    told
        Is given the reason if there is no peer.
    """
    loads = _loads(batched)
    if engine == "cometbft":
        measured = cometbft_rows(requests, [each for _, each in loads], validators)
        return _rows(loads, measured, [], engine)
    own = _own_rows(requests, loads, validators)
    peers: list[dict[str, Any]] = []
    if engine == "auto" and find_engine() is None:
        told(f"no peer: CometBFT is not installed; {HOW}")
    elif engine == "auto":
        peers = cometbft_rows(requests, [each for _, each in loads], validators)
    return _rows(loads, own, peers, "pbft")


def _own_rows(
    requests: int, loads: list[tuple[str, list[Load]]], validators: int
) -> list[dict[str, Any]]:
    replicas, (alone,) = _measured(validators, [Load(requests)])
    times = [0.0, *alone.outcome_seconds]
    each = [1e3 * (after - before) for before, after in pairwise(times)]
    rows = [
        {
            "value": statistics.median(each),
            "percentile_95": sorted(each)[int(0.95 * len(each))],
            **_extra(replicas, requests),
        }
    ]
    for _, group in loads:
        replicas, clients = _measured(validators, group)
        total = sum(load.request_count * load.operation_count for load in group)
        rate = total / max(client.seconds for client in clients)
        rows.append({"value": rate, **_extra(replicas, total)})
    return rows


def _rows(
    loads: list[tuple[str, list[Load]]],
    own: list[dict[str, Any]],
    peers: list[dict[str, Any]],
    engine: str,
) -> list[dict[str, Any]]:
    """Put figures and those of the peer into rows; a ratio above one is in our favour."""
    names = [("commit, median", "ms"), *((what, "operations/s") for what, _ in loads)]
    rows = []
    for place, (what, unit) in enumerate(names):
        figures = dict(own[place])
        ours = figures.pop("value")
        peer = peers[place]["value"] if peers else None
        ratio = None
        if peer is not None:
            ratio = peer / ours if unit == "ms" else ours / peer
        row = {"what": what, "ours": ours, "peer": peer, "ratio": ratio, "unit": unit, **figures}
        row["engine"] = engine
        if peers:
            row["peer_name"] = f"CometBFT {peers[place]['version']}"
        rows.append(row)
    return rows
