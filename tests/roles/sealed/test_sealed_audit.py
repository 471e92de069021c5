"""Views of a sealed day tell nobody a site's numbers; the attacks read on where they may."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from veilgrid.grid.lindistflow import Limits
from veilgrid.mpc import circuit, prepared
from veilgrid.mpc.field import PRIME_FIELD, decode, encode, octets_of, words_of
from veilgrid.roles.audit_padded import attack_padded, known_pads, padded_elements
from veilgrid.roles.audit_sealed import SealedAudit, audit_sealed
from veilgrid.roles.sealed.view import (
    Views,
    WatchedParty,
    record,
    tell_padded_apart,
    tell_shares_apart,
    tell_words_apart,
)
from veilgrid.secret import SeededRandomness

from .sealed_days import small

DAY = small(2).day()
LIMITS = Limits.of(DAY.network)
GAS = 3
OTHER = replace(DAY, sites=tuple(replace(site, load_p=0.3 * site.load_p) for site in DAY.sites))


@pytest.fixture(scope="module")
def audited() -> SealedAudit:
    return audit_sealed(DAY, LIMITS, GAS, SeededRandomness(4), OTHER)


def test_no_role_within_the_bound_recovers_a_single_number(audited: SealedAudit) -> None:
    """Parties alone, another site, the ledger, the operator; prices open where no limit binds."""
    assert {row.role for row in audited.recovered} >= {
        "party 1",
        "party 2",
        "party 3",
        "any one other site",
        "ledger and public",
        "operator",
    }
    for row in audited.recovered:
        if not row.is_in_table:
            assert row.share_recovered == 0.0, row
            assert row.max_error > 0.0
    assert {row.quantity for row in audited.recovered if row.is_in_table} == {"its prices"}


def test_shares_are_no_better_than_no_view_at_all(audited: SealedAudit) -> None:
    rows = [row for row in audited.recovered if row.role.startswith("party")]
    assert {"load", "cost coefficients", "schedule", "net demand", "slack identity"} <= {
        row.quantity for row in rows
    }
    for row in rows:
        if row.baseline_error is not None:
            assert row.max_error >= 0.3 * row.baseline_error, row


def test_one_party_more_than_the_bound_reads_everything(audited: SealedAudit) -> None:
    """The same code, given what the bound forbids: so it would have read it before."""
    rows = [row for row in audited.controls if "beyond" in row.role]
    assert len(rows) >= 4
    for row in rows:
        assert row.share_recovered == 1.0, row


def test_views_of_two_secrets_are_not_told_apart(audited: SealedAudit) -> None:
    parties = {"party 1", "party 2", "party 3"}
    assert {verdict.role for verdict in audited.tests} == {*parties, "all parties"}
    for verdict in audited.tests:
        assert verdict.is_passed, verdict
        assert verdict.tests > 0


@pytest.fixture(scope="module")
def pair() -> list[Views]:
    draw = SeededRandomness(9)
    return [record(one, LIMITS, draw) for one in (DAY, OTHER)]


def repadded(views: Views, site: int, pad_task: int | None) -> Views:
    """What would open if one task's pads served all, or no pad at all."""
    padded = {}
    for task, own in views.padded.items():
        opened = PRIME_FIELD.from_words(words_of(own[site]))
        count = len(opened)
        value = PRIME_FIELD.subtract(opened, known_pads(views, (0, 1, 2), site, task, count))
        if pad_task is not None:
            value = PRIME_FIELD.add(value, known_pads(views, (0, 1, 2), site, pad_task, count))
        padded[task] = {**own, site: bytes(octets_of(value))}
    return replace(views, padded=padded)


def test_one_party_reads_nothing_behind_pads_and_two_read_everything(pair: list[Views]) -> None:
    rows = attack_padded(DAY, pair[0], GAS, [1])
    assert {row.quantity for row in rows} >= {
        "its prices",
        "its payment and own cost",
        "change of its prices",
    }
    assert all(row.share_recovered == 0.0 for row in rows)
    both = attack_padded(DAY, pair[0], GAS, [0, 1])
    assert all(row.share_recovered == 1.0 for row in both), "beyond the bound"


def test_what_is_behind_the_pads_is_what_the_site_got(pair: list[Views]) -> None:
    """Else the attacks would be scored against something else, and always fail."""
    views, register = pair[0], pair[0].public.register
    prices = []
    for task, own in views.padded.items():
        opened = PRIME_FIELD.from_words(words_of(own[GAS]))
        pads = known_pads(views, (0, 1, 2), GAS, task, len(opened))
        numbers = [float(value) for value in decode(PRIME_FIELD.subtract(opened, pads))]
        prices.append(np.array(numbers[: DAY.interval_count]) / 2.0**62 * register.unit)
    last = views.coordination.price_p[GAS]
    assert min(float(np.abs(one - last).max()) for one in prices) < 1e-9


def test_without_a_pad_and_with_one_for_all_tasks_prices_are_read(pair: list[Views]) -> None:
    """The same attacks find both leaks: a pad left out, and a pad that serves twice."""
    (bare,) = [
        row
        for row in attack_padded(DAY, repadded(pair[0], GAS, None), GAS, [], pair[0])
        if row.quantity == "its prices"
    ]
    assert bare.share_recovered == 1.0
    first = min(pair[0].padded)
    again = attack_padded(DAY, repadded(pair[0], GAS, first), GAS, [], pair[0])
    assert {row.quantity: row.share_recovered for row in again}["its prices"] == 0.0
    assert {row.quantity: row.share_recovered for row in again}["change of its prices"] == 1.0


@pytest.mark.parametrize("is_reused", [False, True])
def test_a_pad_that_serves_twice_is_seen_without_any_truth(
    pair: list[Views], is_reused: bool
) -> None:
    days = [one if not is_reused else _reused(one) for one in pair]
    found = tell_padded_apart("all parties", *(padded_elements(one) for one in days))
    assert found[0].is_passed == (not is_reused)


def _reused(views: Views) -> Views:
    first = min(views.padded)
    for site in views.padded[first]:
        views = repadded(views, site, first)
    return views


def shares(secret: int, degree: int, bits: int, seed: int) -> list[Any]:
    """Shares of many equal secrets at 1..5 with coefficients of so many bits."""
    rng = np.random.default_rng(seed)
    count = 4000
    total = [encode([secret] * count)] * 5
    for power in range(1, degree + 1):
        factors = (
            PRIME_FIELD.from_words(rng.integers(0, 2**64, 2 * count, dtype=np.uint64))
            .reshape(-1, 2)
            .copy()
        )
        if bits < 64:
            factors[:, 1] = 0
            factors[:, 0] &= np.uint64(2**bits - 1)
        for place in range(5):
            scaled = PRIME_FIELD.scale(encode([(place + 1) ** power]), factors)
            total[place] = PRIME_FIELD.add(total[place], scaled)
    return total


@pytest.mark.parametrize(("bits", "is_hidden"), [(127, True), (40, False)])
def test_pairs_below_degree_two_see_nothing_unless_coefficients_are_small(
    bits: int, is_hidden: bool
) -> None:
    """The test must be able to fail: small coefficients are a leak that one number hides well."""
    first, second = (shares(secret, 2, bits, seed) for seed, secret in ((1, 0), (2, 2**37)))
    found = tell_shares_apart("a pair", first[:2], second[:2])
    assert all(verdict.is_passed for verdict in found) == is_hidden
    # Three parties of degree two are one too many; two of its shares do not tell.
    lower = (shares(secret, 1, 127, seed) for seed, secret in ((1, 0), (2, 2**37)))
    pair = [views[:2] for views in lower]
    assert not all(verdict.is_passed for verdict in tell_shares_apart("a pair", *pair))


class Leaky:
    """An engine whose masks for comparisons have 16 bits."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    @property
    def source(self) -> "Leaky":
        return Leaky(self._engine.source)

    def raw(self, members: tuple[int, ...], count: int) -> np.ndarray:
        words = self._engine.raw(members, count).reshape(-1, 2).copy()
        words[:, 1] = 0
        words[:, 0] &= np.uint64(0xFFFF)
        return words.ravel()


def test_short_masks_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison whose mask is too short opens the number that it compares."""
    split, masks = circuit._split, prepared._draw
    monkeypatch.setattr(circuit, "_split", lambda engine, *rest: split(Leaky(engine), *rest))
    monkeypatch.setattr(prepared, "_draw", lambda engine, *rest: masks(Leaky(engine), *rest))
    draw = SeededRandomness(6)
    views = [record(one, LIMITS, draw) for one in (DAY, OTHER)]
    heard = [one.parties[0].hidden() for one in views]
    assert not tell_words_apart("party 1", *heard, 3).is_passed


def test_a_party_that_hears_the_others_shares_is_seen_to_know() -> None:
    """A mutant that sends its own shares on: the known part is then the number itself."""
    day = small(1).day()
    views = record(day, Limits.of(day.network), SeededRandomness(6))
    name = f"{GAS:06d} bid"
    both = views.known_part([0, 1], 0, name)
    alone = views.known_part([0], 0, name)
    assert PRIME_FIELD.numbers(both)[0] < 2**40 < PRIME_FIELD.numbers(alone)[0]
    assert isinstance(views.parties[0], WatchedParty)
