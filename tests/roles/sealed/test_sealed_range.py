"""Numbers far beyond their range: who sends them is named, and nobody else."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from veilgrid.grid.lindistflow import Limits
from veilgrid.roles.sealed import course, program
from veilgrid.roles.sealed.course import LIMIT
from veilgrid.roles.sealed.day import SETTINGS, PublicDay
from veilgrid.roles.sealed.kinds import CERTIFICATE, CHALLENGE, DONE, WISH, Task
from veilgrid.roles.sealed.mixing import MIX, Mixture
from veilgrid.roles.sealed.register import POWER_BITS, PRICE_HEARD, WISH_MAX
from veilgrid.roles.sealed.sites_own import OwnSites

from .sealed_days import Change, run_day, small

SCENARIO = small(2, rating=0.55, low=0.97)
DAY, LIMITS = SCENARIO.day(), Limits.of(SCENARIO.network)
TIMES = 2 * DAY.interval_count
LIAR = 2
"""The bus with the battery."""
OUT = {LIAR: "a number out of range"}


@pytest.fixture
def mine() -> Iterator[OwnSites]:
    """The flexible sites of the day."""
    public = PublicDay.of(DAY, LIMITS)
    with ThreadPoolExecutor(1) as pool:
        yield OwnSites(dict(enumerate(DAY.sites)), list(public.flexible), public.register, 20, pool)


def test_an_honest_wish_stays_within_range_wherever_a_mixing_leads(mine: OwnSites) -> None:
    """Else the committee refuses it as out of range and names its honest site."""
    mine.demand = np.ones((2, len(mine.own), 2))
    mine.wish_first()
    mine.demand = mine.demand + 1.0
    mine.measure(1.6)
    far = Mixture(MIX, (1.0,), 1.0, 1e6)
    vectors = mine.next_wishes([[] for _ in mine.own], far)
    most = mine.register.wish_max
    for place, bus in enumerate(mine.own):
        sent = np.abs(np.array(vectors[bus], dtype=np.int64))
        assert (sent == most[:, bus].ravel()).all()
        kept = np.abs(mine.wish[:, place]) * 2.0**POWER_BITS
        np.testing.assert_array_equal(kept.ravel(), sent)
    assert most.max() <= WISH_MAX


@pytest.mark.parametrize("price", [1e30, -1e30])
def test_an_impossible_price_leads_no_honest_site_to_numbers_that_cannot_be_shared(
    mine: OwnSites, price: float
) -> None:
    """Its process stopped on them, and with it all sites in it."""
    for bus in mine.own:
        mine.hear(bus, np.full(TIMES, price), is_pull=False)
    mine.demand = np.ones((2, len(mine.own), 2))
    mine.setpoints = [0.5 * (site.lower + site.upper) for site in mine.members]
    mine.measure(1.6)
    products = mine.products(is_due=False)
    answers = mine.answers(products)
    wishes = mine.next_wishes(products, Mixture(MIX, (1.0,), 1.0, 1e6))
    sent = [abs(int(value)) for vector in [*answers.values(), *wishes.values()] for value in vector]
    assert max(sent) < 2**126
    assert np.abs(mine.price_p).max() == PRICE_HEARD * mine.register.unit


def giant(size: int) -> Change:
    def lie(kind: str, iteration: int, own: list[int]) -> list[int]:
        return [size] * TIMES + own[TIMES:] if kind == WISH and iteration >= 3 else own

    return lie


@pytest.mark.parametrize("size", [2**50 - 1, -(2**110)])
def test_a_wish_out_of_range_names_nobody_but_its_site(size: int) -> None:
    """It made prices under which the others' own numbers were out of range, and all were named."""
    settings = replace(SETTINGS, iteration_count_max=9)
    ended = run_day(DAY, LIMITS, {LIAR: giant(size)}, settings=settings)
    assert ended.excluded == OUT
    assert ended.public["status"] == "converged"


def test_the_largest_wish_within_range_is_found_out_as_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It spoils prices as long as nobody looks; the day must neither stop nor blame others."""
    monkeypatch.setattr(course, "STALLED_FROM", 4)
    monkeypatch.setattr(program, "CHALLENGED_OF", 2)
    ended = run_day(DAY, LIMITS, {LIAR: giant(2**36 - 1)})
    assert set(ended.excluded) == {LIAR}
    assert "its wish is not" in ended.excluded[LIAR]
    assert ended.public["status"] == "converged"


@pytest.mark.parametrize("kind", [CHALLENGE, CERTIFICATE])
def test_nothing_is_concluded_from_impossible_prices_if_nobody_can_be_named(kind: str) -> None:
    """A day must not end early by them, nor go on for ever."""
    now = PublicDay.of(DAY, LIMITS).course()
    now.task = Task(40, kind, 12)
    now.advance({"missing": []})
    assert now.task.kind == WISH
    assert not now.excluded
    now.task = Task(41, kind, now.settings.iteration_count_max)
    now.advance({"missing": []})
    assert (now.task.kind, now.status) == (DONE, LIMIT)
