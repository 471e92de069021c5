"""A masked day by real processes outlives kill -9 of a validator and of a worker."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "simulation"))

from small_day import small_day

from veilgrid.admm.reference import central
from veilgrid.cli._deployed import Size, deployed
from veilgrid.grid.lindistflow import Limits
from veilgrid.machine import NodeId
from veilgrid.roles.ledger_seat import Patience

QUICK = Patience(worker_ns=1_000_000_000, again_ns=500_000_000, view_ns=1_500_000_000)


@pytest.mark.slow
def test_a_day_by_processes_ends_the_same_after_kill_9() -> None:
    """A power cut at one validator and one worker must not change what anybody pays."""
    day = small_day()
    with deployed(day, Size(site_processes=1), patience=QUICK) as running:
        assert running.wait_for_step(2, 90)
        for name in ("validator-1", "worker-1"):
            running.deployment.kill(NodeId(name))
        assert running.wait(120)
        result = running.result
        assert result is not None
        assert not running.is_running("validator-1")
        assert not running.is_running("worker-1")
    assert result.status == "converged"
    assert result.excluded == ()
    optimum = day.cost(central(day, Limits.of(day.network)).setpoints)
    assert result.cost == pytest.approx(optimum, rel=2e-4)
    assert sum(amount for _, amount in result.payments) == 0
