"""Numbers far beyond their range: who sends them is named, and nobody else."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from veilgrid.grid.lindistflow import Limits
from veilgrid.roles.sealed.day import PublicDay
from veilgrid.roles.sealed.mixing import MIX, Mixture
from veilgrid.roles.sealed.register import WISH_MAX
from veilgrid.roles.sealed.sites_own import OwnSites

from .sealed_days import run_day, small


def test_an_honest_wish_stays_within_range_wherever_a_mixing_leads() -> None:
    """Else the committee refuses it as out of range and names its honest site."""
    scenario = small(2)
    day = scenario.day()
    public = PublicDay.of(day, Limits.of(scenario.network))
    own = list(public.flexible)
    with ThreadPoolExecutor(1) as pool:
        mine = OwnSites(dict(enumerate(day.sites)), own, public.register, 20, pool)
        mine.demand = np.ones((2, len(own), 2))
        mine.wish_first()
        mine.demand = mine.demand + 1.0
        mine.measure(1.6)
        far = Mixture(MIX, (1.0,), 1.0, 1e6)
        vectors = mine.next_wishes([[] for _ in own], far)
    sent = np.abs(np.array(list(vectors.values())))
    assert sent.max() == WISH_MAX
    assert np.abs(mine.wish).max() * 2.0**32 == WISH_MAX


def test_a_wish_out_of_range_names_nobody_but_its_site() -> None:
    """It made prices under which mixing led the others out of range, and all were named."""
    scenario = small(2, rating=0.55, low=0.97)

    def lie(kind: str, _iteration: int, own: list[int]) -> list[int]:
        return [-(2**46)] * len(own) if kind == "wish" else own

    ended = run_day(scenario.day(), Limits.of(scenario.network), {3: lie})
    assert ended.excluded == {3: "a number out of range"}
    assert ended.public["status"] == "converged"
