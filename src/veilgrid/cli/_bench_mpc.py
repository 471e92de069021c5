"""The benchmark ``mpc``: our parties as processes beside MPyC."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from veilgrid.errors import RunAborted
from veilgrid.machine import NodeId
from veilgrid.mpc.workload import Workload, expected
from veilgrid.node.local import ProcessSpec, run_processes

_PEER: Final = """
import json, sys, time
import numpy as np
from mpyc.runtime import mpc
kind, count = sys.argv[1], int(sys.argv[2])
async def main():
    await mpc.start()
    generator = np.random.default_rng(1)
    bound = 2**39
    x = generator.integers(-bound, bound, count)
    y = generator.integers(-bound, bound, count)
    number = mpc.SecInt(96) if kind in ("multiplications", "weighted-sum") else mpc.SecInt(41)
    a = mpc.input(number.array(x), senders=0)
    b = mpc.input(number.array(y), senders=0)
    await mpc.gather(a); await mpc.gather(b)
    sent = mpc.parties[(mpc.pid + 1) % 3].protocol.nbytes_sent if len(mpc.parties) > 1 else 0
    started = time.perf_counter()
    if kind == "comparisons":
        result = await mpc.output(mpc.np_sum(a < b))
    elif kind == "multiplications":
        result = await mpc.output(mpc.np_sum(a * b))
    elif kind == "sort":
        result = await mpc.output(mpc.np_sort(a))
    else:
        weights = np.arange(count) % 1000 + 1
        result = await mpc.output(mpc.np_sum(a * weights))
    seconds = time.perf_counter() - started
    octets = sum(p.protocol.nbytes_sent for p in mpc.parties if p.pid != mpc.pid)
    await mpc.shutdown()
    if mpc.pid == 0:
        import resource
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print("RESULT", json.dumps({"seconds": seconds, "octets": octets, "peak": peak}))
mpc.run(main())
"""

_WORK: Final = (
    ("comparisons", 10_000),
    ("multiplications", 1_000_000),
    ("sort", 1_000),
    ("weighted-sum", 10_000),
)


def bench_mpc(
    *, with_peer: bool = True, committees: Sequence[int] = (3, 5, 7)
) -> list[dict[str, Any]]:
    """Return the rows of ``veilgrid bench mpc``.

    Parties are processes with mutual TLS on loopback; ours are secure against deviating parties,
    the peer (MPyC) is not and uses no TLS. Seconds of ours include the agreement on keys.
    """
    rows = []
    for n in committees:
        for kind, count in _WORK:
            ours = measured(Workload(kind, count, (n - 1) // 2), n)
            peer = _peer(kind, count) if with_peer and n == 3 else None
            rows.append(
                {
                    "what": kind if n == 3 else f"{kind}, {n} parties",
                    "ours": ours["seconds"],
                    "peer": peer["seconds"] if peer else None,
                    "ratio": peer["seconds"] / ours["seconds"] if peer else None,
                    "unit": "s",
                    "count": count,
                    "parties": n,
                    "degree": (n - 1) // 2,
                    "ours_megabytes": ours["octets"] / 1e6,
                    "peer_megabytes": peer["octets"] / 1e6 if peer else None,
                    "ours_processor_seconds": ours["processor_seconds"],
                    "ours_peak_megabytes": ours["peak"] / 1e6,
                    "peer_peak_megabytes": peer["peak"] / 1e6 if peer else None,
                    "rounds": ours["rounds"],
                }
            )
    return rows


def specs_of(workload: Workload, n: int) -> list[ProcessSpec]:
    """Return one process for each of ``n`` parties."""
    return [
        ProcessSpec(
            node=NodeId(f"party-{index}"),
            factory="veilgrid.mpc.workload:build_party",
            messages="veilgrid.mpc.message:Message",
            arguments=workload,
        )
        for index in range(1, n + 1)
    ]


def measured(workload: Workload, n: int) -> dict[str, float]:
    """Run a workload with ``n`` processes and check its result."""
    results = run_processes(specs_of(workload, n), timeout_s=600, start_timeout_s=120)
    right = expected(workload)
    for result in results:
        outcome = result.outcomes[0] if result.outcomes else {"reason": result.stderr}
        if outcome.get("result") != right:
            reason = outcome.get("reason", "a result differs from the plain one")
            raise RunAborted(f"{workload.kind} with {n} parties: {reason}")
    return {
        "seconds": max(result.seconds for result in results),
        "octets": max(result.octets_sent for result in results),
        "peak": max(result.peak_memory_octets for result in results),
        "processor_seconds": max(result.processor_seconds for result in results),
        "rounds": results[0].outcomes[0]["round_count"],
    }


def _peer(kind: str, count: int) -> dict[str, float] | None:
    """Run the same work with MPyC in three processes; None if it is not installed or fails."""
    with tempfile.TemporaryDirectory(prefix="veilgrid-peer-") as folder:
        script = Path(folder) / "peer.py"
        script.write_text(_PEER, encoding="utf-8")
        done = subprocess.run(  # noqa: S603 - our own interpreter, our own script
            [sys.executable, str(script), kind, str(count), "-M3", "--no-log"],
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            found: dict[str, float] = json.loads(line.removeprefix("RESULT "))
            return found
    return None
