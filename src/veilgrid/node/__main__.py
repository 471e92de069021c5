"""Measure transport and journal on this machine: ``python -m veilgrid.node`` [node 9]."""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from veilgrid.machine import NodeId
from veilgrid.node import _measure
from veilgrid.node._measure import ANSWERER, MESSAGES, Part, Task
from veilgrid.node.journal import Journal
from veilgrid.node.local import ProcessResult, ProcessSpec, run_in_process, run_processes
from veilgrid.node.signing import fresh_signer
from veilgrid.node.wire import Codec
from veilgrid.signature import verify

_MODULE = "veilgrid.node._measure"


def _spec(node: str, factory: str, task: Task) -> ProcessSpec:
    return ProcessSpec(
        node=NodeId(node),
        factory=f"{_MODULE}:{factory}",
        messages=f"{_MODULE}:MESSAGES",
        arguments=task,
        compute_threads=0,
    )


def _slowest(results: list[ProcessResult]) -> float:
    return max(result.seconds for result in results)


def _start_up() -> float:
    began = time.perf_counter()
    run_processes([_spec(f"p{index}", "exchange", Task(1, 0)) for index in range(3)])
    return time.perf_counter() - began


def _round_trip(length: int, rounds: int) -> float:
    task = Task(rounds, length)
    results = run_processes([_spec("asker", "asker", task), _spec(ANSWERER, "answerer", task)])
    return results[0].seconds / rounds


def _stream(length: int, rounds: int) -> _measure.Cost:
    def run(task: Task) -> list[ProcessResult]:
        specs = [_spec("stream", "stream", task), _spec(ANSWERER, "answerer", task)]
        return run_processes(specs)

    start = sum(result.processor_seconds for result in run(Task(1, 0, is_answered=False)))
    results = run(Task(rounds, length, is_answered=False))
    used = sum(result.processor_seconds for result in results)
    return _measure.Cost(results[0].seconds, used - start)


def _exchange(parties: int, length: int, rounds: int) -> tuple[float, float]:
    specs = [_spec(f"p{index}", "exchange", Task(rounds, length)) for index in range(parties)]
    results = run_processes(specs)
    seconds = _slowest(results)
    return seconds / rounds, results[0].octets_sent / seconds


def _in_process(rounds: int) -> float:
    specs = [_spec(f"p{index}", "exchange", Task(rounds, 1000)) for index in range(3)]
    return _slowest(run_in_process(specs)) / rounds


def _sync() -> float:
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal.open(Path(folder) / "journal", Codec(MESSAGES))
        began = time.perf_counter()
        for number in range(200):
            journal.append(Part(number, memoryview(bytes(200))))
            journal.sync()
        seconds = (time.perf_counter() - began) / 200
        journal.close()
    return seconds


def _signature() -> float:
    signer, payload = fresh_signer(), bytes(100)
    began = time.perf_counter()
    for _ in range(500):
        verify(signer.verify_key, "measure/1", payload, signer.sign("measure/1", payload))
    return (time.perf_counter() - began) / 500


def measure(tries: int) -> list[dict[str, Any]]:
    """Return rows of what, value and unit; the best of ``tries``, because others work here too."""

    def least(function: Callable[..., float], *arguments: Any) -> float:
        return min(function(*arguments) for _ in range(tries))

    large = [_exchange(3, 1_600_000, 10) for _ in range(tries)]
    rows = [
        ("start and end three processes", least(_start_up), "s"),
        ("round trip of 64 octets, two processes", 1e6 * least(_round_trip, 64, 5000), "us"),
        ("round of three processes, 1 kB to each", 1e6 * least(_small_round), "us"),
        ("the same in one process", 1e6 * least(_in_process, 2000), "us"),
        ("three processes exchange 1.6 MB with each: round", 1e3 * min(large)[0], "ms"),
        ("the same: sent by each", max(rate for _, rate in large) / 1e6, "MB/s"),
        *_bulk("one way, 1 MiB messages", _stream, 1 << 20, 256, tries),
        *_bulk("asyncio, 1 MiB writes", _asyncio, 1 << 20, 256, tries),
        *_bulk("asyncio, 64 KiB writes", _asyncio, 1 << 16, 4096, tries),
        ("journal: append and sync", 1e6 * least(_sync), "us"),
        ("sign and verify", 1e6 * least(_signature), "us"),
    ]
    return [
        {"what": what, "value": float(f"{value:.3g}"), "unit": unit} for what, value, unit in rows
    ]


def _asyncio(length: int, count: int) -> _measure.Cost:
    return _measure.asyncio_cost(length * count, length)


def _bulk(
    what: str, function: Callable[[int, int], _measure.Cost], length: int, count: int, tries: int
) -> list[tuple[str, float, str]]:
    costs = [function(length, count) for _ in range(tries)]
    megabytes = length * count / 1e6
    seconds = min(cost.seconds for cost in costs)
    used = min(cost.processor_seconds for cost in costs)
    return [
        (what, megabytes / seconds, "MB/s"),
        (f"{what}: processor time, both ends", 1e6 * used / megabytes, "us/MB"),
    ]


def _small_round() -> float:
    return _exchange(3, 1000, 2000)[0]


def main() -> None:
    """Print one row for each measurement."""
    parser = argparse.ArgumentParser(prog="python -m veilgrid.node", description=main.__doc__)
    parser.add_argument("--tries", type=int, default=3, help="take the best of so many")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    rows = measure(arguments.tries)
    if arguments.json:
        print(json.dumps({"cores": os.cpu_count(), "rows": rows}))
        return
    for row in rows:
        print(f"{row['what']:<52} {row['value']:>10g} {row['unit']}")


if __name__ == "__main__":
    main()
