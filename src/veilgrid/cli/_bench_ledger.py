"""The benchmark ``ledger``: four validators as processes with mutual TLS and real journals."""

import statistics
from itertools import pairwise
from typing import Any, Final

from veilgrid.errors import RunAborted
from veilgrid.ledger.workload import VALIDATOR, Load
from veilgrid.machine import NodeId
from veilgrid.node.local import Deployment, ProcessResult, ProcessSpec

_MODULE: Final = "veilgrid.ledger"
COMETBFT_TUNED_MS: Final = 93.0
"""Median commit of CometBFT 0.38 with four Python applications, tuned; measured elsewhere."""
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
        "published_cometbft_ms": COMETBFT_TUNED_MS,
        "is_peer_measured_here": False,
    }


def bench_ledger(requests: int, batched: int, validators: int = 4) -> list[dict[str, Any]]:
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
    """
    replicas, (alone,) = _measured(validators, [Load(requests)])
    times = [0.0, *alone.outcome_seconds]
    each = [1e3 * (after - before) for before, after in pairwise(times)]
    commit = {
        "what": "commit, median",
        "ours": statistics.median(each),
        "peer": None,
        "ratio": None,
        "unit": "ms",
        "percentile_95": sorted(each)[int(0.95 * len(each))],
        **_extra(replicas, requests),
    }
    rows = [commit]
    for what, load, count in (
        ("operations, 64 a request", Load(max(1, batched // 64), 64, 16), 1),
        ("operations, one a request, 4 clients", Load(max(1, batched // 16), 1, 16), 4),
    ):
        replicas, clients = _measured(validators, [load] * count)
        total = count * load.request_count * load.operation_count
        rate = total / max(client.seconds for client in clients)
        rows.append(
            {
                "what": what,
                "ours": rate,
                "peer": None,
                "ratio": None,
                "unit": "operations/s",
                **_extra(replicas, total),
            }
        )
    return rows
