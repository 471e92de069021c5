"""Search for the bids that gain one site most: what it asks, what it hides, interval by interval.

python tools/best_response.py six-bus:farm simbench-rural-2016-01-18:14
    --tight ../shared/scenarios/yingkou-2023-11-09:49

Each evaluation is exact: `central` plans what is bid, the site pays its marginal prices and bears
its true costs. Devices do what was planned; hidden capacity lies idle. The load is what it truly
is, whatever was bid, and the meter shows that: the difference from what was planned is settled
either at the substation's tariff (bought at its price, sold at its lower one) or at the agreed
price of the bus.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

import numpy as np
from misreport import POWERS, Reckoned, Study, tightened

from veilgrid.admm.certify import certify
from veilgrid.admm.exchange import plan_exchange
from veilgrid.admm.outcome import RunStatus
from veilgrid.admm.reference import central
from veilgrid.errors import InputError
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.grid.scenario import Scenario
from veilgrid.grid.site import Site, Span
from veilgrid.report.folders import open_scenario
from veilgrid.roles.sealed.day import SETTINGS

FREE_OF_FUEL: Final = ("pv", "wind", "battery")
"""Kinds of devices whose costs an operator can know without asking."""

ASKS: Final = (-1.0, 4.0, 0.1)
OFFERS: Final = (0.0, 1.0, 0.1)
LOADS: Final = (0.5, 1.5, 0.1)
"""Least, most and first step: shares of the mean tariff, of what a device can, of the load."""

OFFERED: Final = 1.0
"""What a truthful bid offers of what a device can."""

FIRST: Final = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0)
"""What is tried of each kind of misreport before the search, all devices alike."""

HALVINGS: Final = 6
FLAT: Final = 1e-7
"""A gain that grows by less than this share of the cost of all has not grown."""

RULES: Final = ("tariff", "agreed")

SHOWN: Final = 6
"""Numbers of a bid that are printed."""

HEADER: Final = (
    *("may lie about; deviations at", "best bid found", "gains", "gains under `sealed`"),
    *("of its bill", "cost of all", "beyond limits, p.u.", "evaluations"),
)


@dataclass(frozen=True)
class Axis:
    """One number of a bid.

    Attributes
    ----------
    truth
        Its value in a truthful bid.
    """

    name: str
    device: str
    truth: float
    least: float
    most: float
    step: float
    put: Callable[[Site, float], Site] = field(compare=False)

    def cut(self, value: float) -> float:
        """Return the nearest number that can be bid."""
        return float(np.clip(value, self.least, self.most))


@dataclass(frozen=True)
class Tried:
    """A bid and what came of it.

    Attributes
    ----------
    gains
        By rule for deviations, currency; minus infinity where no plan was found.
    excess_pu
        By how much true demands exceed network rows.
    """

    bid: tuple[float, ...]
    gains: dict[str, float]
    cost: float
    excess_pu: float


def spans(site: Site) -> list[Span]:
    """Return where powers of devices lie that can do something."""
    count = site.interval_count
    return [
        span
        for span in site.spans
        if span.group in POWERS
        and np.any(
            site.upper[span.start : span.start + count]
            > site.lower[span.start : span.start + count]
        )
    ]


def asks(
    site: Site, tariff: float, times: Sequence[int] | None = None, label: str = ""
) -> Iterable[Axis]:
    """Yield what each device may ask on top of its costs, in some intervals."""
    chosen = np.arange(site.interval_count) if times is None else np.array(times)
    for span in spans(site):

        def put(one: Site, value: float, at: np.ndarray = span.start + chosen) -> Site:
            linear = one.linear.copy()
            linear[at] += value * tariff
            return replace(one, linear=linear)

        yield Axis(f"{span.device} {span.group} asks{label}", span.device, 0.0, *ASKS, put)


def offers(site: Site, times: Sequence[int] | None = None, label: str = "") -> Iterable[Axis]:
    """Yield which share of its power each device may offer, in some intervals."""
    chosen = np.arange(site.interval_count) if times is None else np.array(times)
    for span in spans(site):

        def put(one: Site, value: float, at: np.ndarray = span.start + chosen) -> Site:
            upper = one.upper.copy()
            upper[at] = np.maximum(one.lower[at], value * upper[at])
            return replace(one, upper=upper)

        yield Axis(f"{span.device} {span.group} offers{label}", span.device, OFFERED, *OFFERS, put)


def loads(site: Site) -> Iterable[Axis]:
    """Yield which share of its load a site may bid."""

    def put(one: Site, value: float) -> Site:
        return replace(one, load_p=value * one.load_p, load_q=value * one.load_q)

    if np.any(site.load_p):
        yield Axis("load bid", "", 1.0, *LOADS, put)


@dataclass
class Hunt:
    """Bids of one site of a day, tried one after the other.

    Attributes
    ----------
    count
        Of days that were planned so far, the truthful one left out.
    """

    study: Study
    bus: int
    count: int = 0
    tries: dict[frozenset[tuple[str, float]], Tried] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.truthful = central(self.study.day, self.study.limits)
        self.site = self.study.day.sites[self.bus]
        self.grow = FLAT * abs(self.study.truth.cost)

    def bound_times(self) -> list[int]:
        """Return intervals in which a limit moves the site's price."""
        root = self.study.day.network.tree.root
        price = self.truthful.price_p
        return [int(t) for t in np.flatnonzero(np.abs(price[self.bus] - price[root]) > 1e-6)]

    def said(self, axes: Sequence[Axis], bid: Sequence[float]) -> Day:
        """Return the day as it is bid."""
        sites = list(self.study.day.sites)
        for axis, value in zip(axes, bid, strict=True):
            if value != axis.truth:
                sites[self.bus] = axis.put(sites[self.bus], value)
        return replace(self.study.day, sites=tuple(sites))

    def tried(self, axes: Sequence[Axis], bid: tuple[float, ...]) -> Tried:
        """Plan what is bid, once, and reckon what the site bears of it."""
        lies = frozenset(
            (axis.name, value) for axis, value in zip(axes, bid, strict=True) if value != axis.truth
        )
        if lies not in self.tries:
            self.count += 1
            self.tries[lies] = self._reckoned(self.said(axes, bid))
        return replace(self.tries[lies], bid=bid)

    def _reckoned(self, said: Day) -> Tried:
        nothing = Tried((), dict.fromkeys(RULES, -np.inf), np.inf, np.inf)
        try:
            outcome = central(said, self.study.limits)
        except InputError:
            return nothing  # A device could not do what it has to.
        if outcome.status is not RunStatus.CONVERGED:
            return nothing
        before = self.study.truth.bears[self.bus]
        prices = (outcome.price_p, outcome.price_q)
        found = {r: settled(self.study.day, said, outcome.setpoints, prices, r) for r in RULES}
        excess = self.study.limits.excess(self.study.day.flows(outcome.setpoints))
        return Tried(
            (),
            {rule: float(before - one.bears[self.bus]) for rule, one in found.items()},
            found["agreed"].cost,
            float(max(excess.max(initial=0.0), 0.0)),
        )

    def best(
        self, axes: Sequence[Axis], rule: str, starts: Iterable[Sequence[float]], budget: int
    ) -> Tried:
        """Search from the best of some bids along one number after the other, ever finer."""
        found = self.tried(axes, tuple(axis.truth for axis in axes))
        for guess in [*starts, *first_guesses(axes)]:
            tried = self.tried(axes, tuple(guess))
            found = tried if tried.gains[rule] > found.gains[rule] + self.grow else found
        steps, until = [axis.step for axis in axes], self.count + budget
        for _ in range(HALVINGS):
            is_better = True
            while is_better and self.count < until:
                former = found
                for place, axis in enumerate(axes):
                    found = self._along(axes, rule, found, (place, axis, steps[place]), until)
                is_better = found is not former
            steps = [step / 2.0 for step in steps]
        if self.count >= until:
            print(f"  stopped after {budget} evaluations", file=sys.stderr)
        return found

    def _along(
        self,
        axes: Sequence[Axis],
        rule: str,
        found: Tried,
        way: tuple[int, Axis, float],
        until: int,
    ) -> Tried:
        """Move one number up or down, twice as far each time, as long as that gains."""
        place, axis, step = way
        for sign in (1.0, -1.0):
            stride, before = step, found
            while self.count < until:
                bid = list(found.bid)
                bid[place] = axis.cut(bid[place] + sign * stride)
                tried = self.tried(axes, tuple(bid))
                if tried.gains[rule] <= found.gains[rule] + self.grow:
                    break
                found, stride = tried, 2.0 * stride
            if found is not before:
                return found
        return found

    def confirm(self, axes: Sequence[Axis], bid: Sequence[float], rule: str) -> float:
        """Return what a bid gains under the settings of `sealed`, at the certified prices."""
        if all(value == axis.truth for axis, value in zip(axes, bid, strict=True)):
            return 0.0
        return self._honest_under_sealed - self._under_sealed(self.said(axes, bid), rule)

    @cached_property
    def _honest_under_sealed(self) -> float:
        return self._under_sealed(self.study.day, RULES[0])

    def _under_sealed(self, said: Day, rule: str) -> float:
        outcome = plan_exchange(said, self.study.limits, settings=SETTINGS)
        prices = (outcome.price_p, outcome.price_q)
        target = certify(said, self.study.limits, outcome.setpoints, *prices).target
        prices = (target.price_p, target.price_q)
        found = settled(self.study.day, said, outcome.setpoints, prices, rule)
        return float(found.bears[self.bus])


def first_guesses(axes: Sequence[Axis]) -> list[tuple[float, ...]]:
    """Return bids in which all devices ask alike, or hide alike."""
    guesses = []
    for kind in (ASKS, OFFERS, LOADS):
        for size in FIRST:
            moved = tuple(
                axis.cut(axis.truth + (-size if kind is OFFERS else size))
                if (axis.least, axis.most, axis.step) == kind
                else axis.truth
                for axis in axes
            )
            if any(value != axis.truth for value, axis in zip(moved, axes, strict=True)):
                guesses.append(moved)
    return list(dict.fromkeys(guesses))


def settled(
    day: Day,
    said: Day,
    setpoints: list["np.typing.NDArray[np.float64]"],
    prices: tuple["np.typing.NDArray[np.float64]", "np.typing.NDArray[np.float64]"],
    rule: str,
) -> Reckoned:
    """Settle a plan of what was said, and the true demands' difference from it by a rule."""
    demand_p, demand_q = said.demands(setpoints)
    true_p, true_q = day.demands(setpoints)
    paid = (prices[0] * demand_p + prices[1] * demand_q).sum(axis=1)
    more_p, more_q = true_p - demand_p, true_q - demand_q
    if rule == "agreed":
        paid += (prices[0] * more_p + prices[1] * more_q).sum(axis=1)
    else:
        paid += np.maximum(more_p, 0.0) @ day.buy + np.minimum(more_p, 0.0) @ day.sell
    own = [site.cost(x) for site, x in zip(day.sites, setpoints, strict=True)]
    return Reckoned(np.array(own) + paid, day.cost(setpoints))


@dataclass(frozen=True)
class Stage:
    """Which misreports are open to a site, and how deviations are settled."""

    name: str
    axes: tuple[Axis, ...]
    rule: str = "agreed"


def stages(hunt: Hunt) -> list[Stage]:
    """Return what is tried: few ways, many, then what caps leave."""
    site, tariff = hunt.site, hunt.study.tariff
    ask, offer, load = tuple(asks(site, tariff)), tuple(offers(site)), tuple(loads(site))
    times = hunt.bound_times()
    wide: tuple[Axis, ...] = ()
    for t in times:
        wide += (*asks(site, tariff, [t], f" at {t}"), *offers(site, [t], f" at {t}"))
    free = {span.device for span in spans(site) if span.kind in FREE_OF_FUEL}
    every = ask + offer
    whole = every + wide
    rest = tuple(one for one in whole if one.device not in free or one.truth == OFFERED)
    return [
        Stage("asks", ask),
        Stage("offers", offer),
        Stage("asks and offers", every),
        Stage(f"both, and in {len(times)} bound intervals apart", whole),
        *(Stage(f"load; {rule}", load, rule) for rule in RULES if load),
        *(Stage(f"asks, offers and load; {rule}", every + load, rule) for rule in RULES if load),
        Stage("cap on asks without fuel: the rest", rest),
        Stage(
            "the same, and no less offered without fuel",
            tuple(one for one in whole if one.device not in free),
        ),
    ]


def told(axes: Sequence[Axis], bid: Sequence[float]) -> str:
    """Return a bid in words, by what differs from the truth."""
    parts = [
        f"{axis.name} {'+' if axis.truth == 0.0 and value > 0.0 else ''}{100.0 * value:.3g} %"
        for axis, value in zip(axes, bid, strict=True)
        if value != axis.truth
    ]
    shown = parts if len(parts) <= SHOWN else [*parts[:SHOWN], f"{len(parts) - SHOWN} more"]
    return ", ".join(shown) or "the truth"


def report(name: str, scenario: Scenario, bus_name: str, budget: int, *, is_exact: bool) -> None:
    """Print the best bids of one site."""
    day = scenario.day()
    bus = [str(site.name) for site in day.sites].index(bus_name)
    study = Study(day, Limits.of(day.network))
    hunt, bill = Hunt(study, bus), float(study.truth.bears[bus])
    print(f"\n{name}, site {bus_name}: bears {bill:.2f} {day.currency} truthfully", end="")
    print(f", all {study.truth.cost:.2f}\n")
    print("| " + " | ".join(HEADER) + " |\n" + "|---" * len(HEADER) + "|")
    known: list[dict[str, float]] = []
    for stage in stages(hunt):
        before, axes = hunt.count, stage.axes
        names = {axis.name for axis in axes}
        starts = [
            [lies.get(axis.name, axis.truth) for axis in axes]
            for lies in known
            if lies.keys() <= names
        ]
        found = hunt.best(axes, stage.rule, starts, budget)
        known.append({a.name: v for a, v in zip(axes, found.bid, strict=True) if v != a.truth})
        gain = found.gains[stage.rule]
        extra = 100.0 * (found.cost - study.truth.cost) / abs(study.truth.cost)
        under = "" if is_exact else f"{hunt.confirm(axes, found.bid, stage.rule):.2f}"
        cells = [
            *(stage.name, told(axes, found.bid), f"{gain:.2f}", under),
            *(f"{100.0 * gain / abs(bill):.2f} %", f"{extra:+.3f} %", f"{found.excess_pu:.1e}"),
            str(hunt.count - before),
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Read the arguments and print one table a site."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("days", nargs="*", help="DAY:SITE, folders or bundled days")
    parser.add_argument("--tight", nargs="*", default=[], help="DAY:SITE, impedances times 3")
    parser.add_argument("--budget", type=int, default=300, help="evaluations a stage, at most")
    parser.add_argument("--exact", action="store_true", help="leave the settings of sealed out")
    given = parser.parse_args()
    for one in given.days:
        name, _, bus = one.rpartition(":")
        scenario = open_scenario(name)
        report(scenario.name, scenario, bus, given.budget, is_exact=given.exact)
    for one in given.tight:
        name, _, bus = one.rpartition(":")
        scenario = open_scenario(name)
        report(
            f"{scenario.name}, tight", tightened(scenario), bus, given.budget, is_exact=given.exact
        )


if __name__ == "__main__":
    main()
