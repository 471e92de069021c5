"""The benchmarks ``capacity`` and ``market``: rounds on a committee of processes."""

from typing import Any, Final

from veilgrid.cli._bench_plain import beside_plain
from veilgrid.risk.market_workload import Workload, expected

MARKET_SIZES: Final = (5_000, 100_000)
FLEET_SIZE: Final = 10_000
PARTIES: Final = 3
DEGREE: Final = 1


def bench_market(sizes: tuple[int, ...] = MARKET_SIZES) -> list[dict[str, Any]]:
    """Time rounds of markets; the peer is the same computation on plain numbers."""
    rows = [timed(f"market, {size} orders", Workload("market", size, DEGREE)) for size in sizes]
    what = f"market, {min(sizes)} orders, price and volume only"
    return [*rows, timed(what, Workload("prices", min(sizes), DEGREE))]


def bench_capacity(size: int = FLEET_SIZE) -> list[dict[str, Any]]:
    """Time a fleet's capacity under sixteen scenarios, and a refresh of a hundredth of it."""
    return [
        timed(f"capacity, {size} devices, 16 scenarios", Workload("capacity", size, DEGREE)),
        timed(f"refresh of {size // 100} of {size} devices", Workload("refresh", size, DEGREE)),
    ]


def timed(what: str, work: Workload, parties: int = PARTIES) -> dict[str, Any]:
    """Run a workload with processes over TLS, and in the clear, and compare what they open."""
    expected(Workload(work.kind, 200, work.degree))  # Compiled parts are warm from here on.
    factory = "veilgrid.risk.market_workload:build_party"
    return beside_plain(what, factory, work, parties, lambda: expected(work))
