"""A sealed day by real processes: a party and all sites are killed with -9, a party lies."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from roles.sealed.sealed_days import small
from veilgrid.cli._sealed import sealed_specs
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.machine import NodeId
from veilgrid.node.local import Deployment
from veilgrid.roles.sealed.day import SETTINGS, SITES, PublicDay
from veilgrid.roles.sealed.message import Collected, DayEnded, Stopped
from veilgrid.roles.sealed.sites_kept import SiteOutcome
from veilgrid.secret import SystemRandomness

HERE = Path(__file__).parent
VICTIM = NodeId("party-2")


DAY = small(6, rating=0.55, low=0.97).day()


def deployed(day: Day, factory: str = "") -> Deployment:
    public = PublicDay.of(day, Limits.of(day.network), SETTINGS)
    specs = sealed_specs(day, public, SystemRandomness(), 3, 1, 4_000_000_000)
    if factory:
        specs = [replace(s, factory=factory) if s.node == VICTIM else s for s in specs]
    return Deployment(specs, import_paths=[HERE])


def ended(deployment: Deployment, seconds: float = 120) -> Any:
    assert deployment.wait_until(lambda: bool(deployment.outcomes(SITES)), seconds)
    results = deployment.stop(DayEnded | Stopped | SiteOutcome | Collected)
    found: Sequence[Any] = next(one.outcomes for one in results if one.node == SITES)
    return found[0]


def test_a_day_goes_on_after_a_party_and_the_sites_were_killed_at_once() -> None:
    """Neither is there to say that the other is missing. Their journals hold what was committed:
    nobody bids again, nobody is left out."""
    with deployed(DAY) as deployment:
        deployment.start()
        assert not deployment.wait_until(lambda: bool(deployment.outcomes(SITES)), 1.5)
        for node in (VICTIM, SITES):
            deployment.kill(node)
        for node in (SITES, VICTIM):
            deployment.restart(node)
        found = ended(deployment)
    assert isinstance(found, SiteOutcome), found
    assert found.public["status"] == "converged"
    assert found.public["excluded"] == {}


def test_a_party_that_signs_a_wrong_share_is_named() -> None:
    with deployed(DAY, "sealed_liar:build_liar") as deployment:
        deployment.start()
        found = ended(deployment)
    assert isinstance(found, Stopped)
    assert found.culprits == ["party-2"]
