"""A site of scheme ``exchange`` as a machine: declares, answers offers, tells its regret.

Sites without choice declare their net demand once; the others answer the tariff, then one offer of
prices and targets an iteration, and where asked tell how far an answer is from their cheapest one
[docs/protocol/exchange.md 9].
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from veilgrid.admm.accelerate import Powers, bounded_powers, stiffness_of
from veilgrid.admm.exchange_message import Answer, Check, Close, Offer, Regret
from veilgrid.admm.site_step import SiteStep
from veilgrid.grid.network import Floats
from veilgrid.grid.site import Site
from veilgrid.machine import (
    START,
    Compute,
    Computed,
    Decide,
    Effect,
    Event,
    NodeId,
    Received,
    Send,
    TimerFired,
)


class SitePlan(NamedTuple):
    """What a site decides.

    Attributes
    ----------
    iteration
        Whose answer is its part of the plan: 0 for a declaration, -1 for none.
    setpoints : (variable,), per-unit
        That answer; empty if the coordinator holds none of this site's.
    price_p, price_q : (interval,), currency per per-unit and interval
        The last prices it heard.
    """

    status: str
    iteration: int
    setpoints: Floats
    price_p: Floats
    price_q: Floats


def packed(values: Floats) -> bytes:
    """Array to bytes."""
    return np.ascontiguousarray(values, dtype="<f8").tobytes()


def unpacked(content: object, count: int) -> Floats | None:
    """Bytes to a finite (interval,) array, ``None`` if they are none."""
    if not isinstance(content, bytes) or len(content) != 8 * count:
        return None
    values = np.frombuffer(content, dtype="<f8").astype(np.float64)
    return values if bool(np.isfinite(values).all()) else None


class Nearby(NamedTuple):
    """A site's answer: set-points and the net demand (interval,) they make."""

    setpoints: Floats
    demand_p: Floats
    demand_q: Floats


def answer_offer(
    step: SiteStep, price_p: Floats, price_q: Floats, target_p: Floats, target_q: Floats
) -> Nearby:
    """Solve one site's problem; arrays are (interval,)."""
    found = step.answer(
        price_p[np.newaxis], price_q[np.newaxis], target_p[np.newaxis], target_q[np.newaxis]
    )
    return Nearby(found.setpoints[0], found.demand_p[0], found.demand_q[0])


class ExchangeSite:
    """One site: declares, answers offers, tells its regret.

    Parameters
    ----------
    site
        Its own data; never leaves it.
    coordinator
        Whose offers it answers.
    buy : (interval,)
        The tariff that its first answer is to.
    penalty_p, penalty_q : >= 0
        Of this site, from the public metric.
    needs_reactive
        Whether any limit exists, so that reactive power matters.
    """

    def __init__(
        self,
        site: Site,
        coordinator: NodeId,
        buy: Floats,
        penalty_p: float,
        penalty_q: float,
        *,
        needs_reactive: bool,
    ) -> None:
        self._site, self._coordinator, self._buy = site, coordinator, buy
        self._needs_reactive = needs_reactive
        self._penalty_p, self._penalty_q = penalty_p, penalty_q
        self._near: SiteStep | None = None
        self._near_to = b""
        self._blank = np.zeros(site.interval_count)
        if site.is_flexible:
            self._cheapest = SiteStep([site], np.zeros(1), np.zeros(1))
        self._state = _SiteState(buy, self._blank)

    def start(self) -> list[Effect]:
        """Begin: declare the net demand, or answer the tariff."""
        if self._state.is_started:
            return []
        self._state.is_started = True
        if not self._site.is_flexible:
            x = np.clip(0.0, self._site.lower, self._site.upper)
            found = Nearby(x, self._site.demand_p(x), self._site.demand_q(x))
            return [self._answer(0, found)]
        self._state.asked = 1
        blank = self._blank
        return [Compute(("answer", 1), answer_offer, (self._cheapest, self._buy, *[blank] * 3))]

    def handle(self, event: Event) -> list[Effect]:
        """Advance by one event; what does not fit is ignored."""
        state = self._state
        if state.is_over:
            return []
        match event:
            case TimerFired(name) if name == START:
                return self.start()
            case Computed(("answer", iteration), Nearby() as found) if iteration == state.asked:
                return [self._answer(iteration, found)]
            case Computed(("regret", iteration), Nearby() as found) if iteration == state.checked:
                return [self._regret(iteration, found)]
            case Received(sender, Offer() as offer) if sender == self._coordinator:
                return self._on_offer(offer)
            case Received(sender, Check() as check) if sender == self._coordinator:
                return self._on_check(check)
            case Received(sender, Close() as close) if sender == self._coordinator:
                return self._on_close(close)
            case _:
                return []  # Late, foreign or malformed: normal between strangers.

    def _on_offer(self, offer: Offer) -> list[Effect]:
        state = self._state
        price_p, target_p = self._read(offer.price_p), self._read(offer.target_p)
        price_q, target_q = self._read_q(offer.price_q), self._read_q(offer.target_q)
        powers = self._read_powers(offer.powers)
        is_next = self._site.is_flexible and offer.iteration > state.asked
        if not is_next or price_p is None or target_p is None or price_q is None:
            return []
        if target_q is None or powers is None:
            return []
        state.asked = offer.iteration
        state.price_p, state.price_q = price_p, price_q
        arguments = (self._near_at(powers), price_p, price_q, target_p, target_q)
        return [Compute(("answer", offer.iteration), answer_offer, arguments)]

    def _near_at(self, powers: Powers) -> SiteStep:
        """Prepare the site's problem anew where its penalties changed."""
        if self._near is None or self._near_to != powers.tobytes():
            stiffness = stiffness_of(powers)[np.newaxis]
            penalties = self._penalty_p * stiffness, self._penalty_q * stiffness
            self._near, self._near_to = SiteStep([self._site], *penalties), powers.tobytes()
        return self._near

    def _on_check(self, check: Check) -> list[Effect]:
        state = self._state
        price_p, price_q = self._read(check.price_p), self._read_q(check.price_q)
        is_now = check.iteration == state.answered and check.iteration > state.checked
        if not is_now or price_p is None or price_q is None:
            return []
        state.checked = check.iteration
        state.price_p, state.price_q = price_p, price_q
        arguments = (self._cheapest, price_p, price_q, self._blank, self._blank)
        return [Compute(("regret", check.iteration), answer_offer, arguments)]

    def _regret(self, iteration: int, cheapest: Nearby) -> Effect:
        """Compare the last answer with the cheapest one, both at the prices asked about."""
        state, site = self._state, self._site

        def total(found: Nearby) -> float:
            paid = state.price_p @ found.demand_p + state.price_q @ found.demand_q
            return site.cost(found.setpoints) + float(paid)

        amount = total(state.answers[iteration]) - total(cheapest)
        return Send(self._coordinator, Regret(iteration, max(amount, 0.0)))

    def _on_close(self, close: Close) -> list[Effect]:
        state = self._state
        state.is_over = True
        found = state.answers.get(close.iteration)
        x = np.zeros(0) if found is None else found.setpoints
        iteration = -1 if found is None else close.iteration
        return [Decide(SitePlan(close.status, iteration, x, state.price_p, state.price_q))]

    def _answer(self, iteration: int, found: Nearby) -> Effect:
        """Send an answer; the one before is kept, should this one come too late."""
        state = self._state
        state.answers = {k: v for k, v in state.answers.items() if k == state.answered}
        state.answers[iteration] = found
        state.answered = iteration
        demand_q = packed(found.demand_q) if self._needs_reactive else b""
        cost = self._site.cost(found.setpoints)
        return Send(self._coordinator, Answer(iteration, packed(found.demand_p), demand_q, cost))

    def _read(self, content: object) -> Floats | None:
        return unpacked(content, self._site.interval_count)

    def _read_powers(self, content: object) -> Powers | None:
        if not isinstance(content, bytes) or len(content) != self._site.interval_count:
            return None
        powers = np.frombuffer(content, np.int8)
        return powers if bool((powers == bounded_powers(powers)).all()) else None

    def _read_q(self, content: object) -> Floats | None:
        if not self._needs_reactive:
            return self._blank if content == b"" else None
        return self._read(content)


@dataclass
class _SiteState:
    """Everything of a site that changes."""

    price_p: Floats
    price_q: Floats
    answers: dict[int, Nearby] = field(default_factory=dict)
    is_started: bool = False
    is_over: bool = False
    asked: int = 0
    answered: int = 0
    checked: int = 0
