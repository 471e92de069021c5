"""A workload on a committee of processes, beside the same computation on plain numbers."""

import time
from collections.abc import Callable
from typing import Any, Protocol

from veilgrid.errors import RunAborted
from veilgrid.machine import NodeId
from veilgrid.node.local import ProcessSpec, run_processes


class _Sized(Protocol):
    @property
    def count(self) -> int: ...

    @property
    def degree(self) -> int: ...


def beside_plain(
    what: str,
    factory: str,
    work: _Sized,
    parties: int,
    plain: Callable[[], Any],
    opened: Callable[[Any], Any] = lambda result: result,
) -> dict[str, Any]:
    """Run ``work`` with processes over TLS, and in the clear, and compare what they open.

    Parameters
    ----------
    what
        Says in the row what was measured.
    factory
        Builds a party from ``work``, as ``package.module:function``.
    work
        What the parties compute.
    parties : >= 1
        Number of processes.
    plain
        The same on plain numbers; its compiled parts should be warm.
    opened
        What of a party's result ``plain`` should equal; the whole of it if not given.

    Raises
    ------
    RunAborted
        They open different numbers, or a party ended without a result.
    """
    specs = [
        ProcessSpec(
            node=NodeId(f"party-{index}"),
            factory=factory,
            messages="veilgrid.mpc.message:Message",
            arguments=work,
        )
        for index in range(1, parties + 1)
    ]
    results = run_processes(specs, timeout_s=600, start_timeout_s=300)
    began = time.perf_counter()
    right = plain()
    seconds_plain = time.perf_counter() - began
    for result in results:
        outcome: dict[str, Any] = (
            result.outcomes[0] if result.outcomes else {"reason": result.stderr}
        )
        if opened(outcome.get("result")) != right:
            reason = outcome.get("reason", "a result differs from the plain one")
            raise RunAborted(f"{what}: {reason}")
    seconds = max(result.seconds for result in results)
    return {
        "what": what,
        "ours": seconds,
        "peer": seconds_plain,
        "ratio": seconds_plain / seconds,
        "unit": "s",
        "peer_name": "the same on plain numbers",
        "count": work.count,
        "parties": parties,
        "degree": work.degree,
        "ours_megabytes": max(result.octets_sent for result in results) / 1e6,
        "ours_peak_megabytes": max(result.peak_memory_octets for result in results) / 1e6,
        "processor_seconds": max(result.processor_seconds for result in results),
        "rounds": results[0].outcomes[0]["round_count"],
    }
