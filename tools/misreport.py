"""Print what sites gain by bidding other costs than they have: alone, in pairs and all together.

python tools/misreport.py six-bus simbench-rural-2016-01-18 ../shared/scenarios/yingkou-2023-11-09
    --tight ../shared/scenarios/yingkou-2023-11-09

Gains are exact first: `central` on what is bid gives plan and marginal prices to solver precision.
Beside them stands what the settings of `sealed` make of the same bids, and by how much a site's
bill moves there when nobody misreports and only penalty, relaxation or precision differ.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations, product
from typing import Final

import numpy as np

from veilgrid.admm.certify import certify
from veilgrid.admm.exchange import ExchangeSettings, plan_exchange
from veilgrid.admm.outcome import Coordination, RunStatus
from veilgrid.admm.reference import central
from veilgrid.errors import invariant
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.grid.scenario import Scenario
from veilgrid.grid.site import Site
from veilgrid.report.folders import open_scenario
from veilgrid.roles.sealed.day import SETTINGS

VARIANTS: Final = (
    replace(SETTINGS, gap_max=SETTINGS.gap_max / 10.0),
    replace(SETTINGS, penalty=1.3 * SETTINGS.penalty),
    replace(SETTINGS, relaxation=1.5),
)
"""Settings that change nothing but which of the plans within the allowed gap comes out."""

STILL: Final = 1e-5
"""A misreport so small moves the exact bill by nothing but what the oracle is uncertain about."""

Misreport = Callable[[Site, float], Site]
"""What a site bids, given the mean tariff."""


def times(factor: float) -> Misreport:
    """Multiply all own costs."""
    return lambda site, _: replace(
        site, linear=factor * site.linear, quadratic=factor * site.quadratic
    )


def plus(share: float) -> Misreport:
    """Add a share of the mean tariff to what each unit of each device's power costs."""

    def bid(site: Site, tariff: float) -> Site:
        linear = site.linear.copy()
        count = site.inject_p.shape[0]
        for span in site.spans:
            if span.group in POWERS:
                linear[span.start : span.start + count] += share * tariff
        return replace(site, linear=linear)

    return bid


POWERS: Final = ("p", "charge", "discharge")

MISREPORTS: Final[dict[str, Misreport]] = {
    **{f"x {factor:g}": times(factor) for factor in (0.5, 0.9, 1.1, 2.0)},
    **{f"+ {100 * share:g} % tariff": plus(share) for share in (-0.2, 0.05, 0.2, 0.5)},
}
SMALL: Final = ("x 0.9", "x 1.1")

HEADER: Final = (
    *("what", "who", "bids", "bears truthfully", "gains", "of its bill", "cost of all"),
    *("gains under `sealed`", "noise there", "verdict"),
)


@dataclass(frozen=True)
class Reckoned:
    """A day's outcome at what was bid: each site's true cost and payment, and the cost of all."""

    bears: "np.typing.NDArray[np.float64]"
    cost: float


@dataclass(frozen=True)
class Case:
    """Who bids what, and what that gains the exact way."""

    who: tuple[int, ...]
    how: tuple[str, ...]
    gain: float
    extra_percent: float


@dataclass
class Study:
    """One day: its truth, and every misreport tried on it."""

    day: Day
    limits: Limits
    tariff: float = field(init=False)

    def __post_init__(self) -> None:
        self.tariff = float(np.mean(np.abs(self.day.buy)))
        self.truth = self.exact(self.day)

    @cached_property
    def uncertain(self) -> float:
        """By how much the exact bill of a site moves where next to nothing is misreported."""
        nudged = [self.bid({bus: times(1.0 + STILL)}) for bus in self.members]
        off = [
            abs(self.exact(day).bears[bus] - self.truth.bears[bus])
            for bus, day in zip(self.members, nudged, strict=True)
        ]
        return max(off, default=0.0)

    @property
    def members(self) -> list[int]:
        """Sites that have a choice."""
        return list(self.day.flexible)

    def bid(self, bids: dict[int, Misreport]) -> Day:
        """Return the day as it is bid."""
        sites = list(self.day.sites)
        for bus, misreport in bids.items():
            sites[bus] = misreport(sites[bus], self.tariff)
        return replace(self.day, sites=tuple(sites))

    def _reckon(self, outcome: Coordination, price_p: object, price_q: object) -> Reckoned:
        invariant(outcome.status is RunStatus.CONVERGED, "a misreported day can be planned")
        demand_p, demand_q = self.day.demands(outcome.setpoints)
        paid = (price_p * demand_p).sum(axis=1) + (price_q * demand_q).sum(axis=1)  # type: ignore[operator]
        own = [site.cost(x) for site, x in zip(self.day.sites, outcome.setpoints, strict=True)]
        return Reckoned(np.array(own) + paid, self.day.cost(outcome.setpoints))

    def exact(self, said: Day) -> Reckoned:
        """Settle at the marginal prices of the optimum of what is said."""
        outcome = central(said, self.limits)
        return self._reckon(outcome, outcome.price_p, outcome.price_q)

    def sealed(self, said: Day, settings: ExchangeSettings = SETTINGS) -> Reckoned:
        """Settle at the certified prices of the plan that these settings come to."""
        outcome = plan_exchange(said, self.limits, settings=settings)
        prices = (outcome.price_p, outcome.price_q)
        target = certify(said, self.limits, outcome.setpoints, *prices).target
        return self._reckon(outcome, target.price_p, target.price_q)

    def case(self, who: Sequence[int], how: Sequence[str]) -> Case:
        """Try one misreport the exact way."""
        bids = {bus: MISREPORTS[name] for bus, name in zip(who, how, strict=True)}
        found = self.exact(self.bid(bids))
        gain = float((self.truth.bears - found.bears)[list(who)].sum())
        extra = 100.0 * (found.cost - self.truth.cost) / abs(self.truth.cost)
        return Case(tuple(who), tuple(how), gain, extra)

    def singles(self, who: Iterable[int]) -> list[Case]:
        """Try every misreport of each of these sites."""
        return [self.case((bus,), (how,)) for bus in shown(list(who)) for how in MISREPORTS]

    def pairs(self, who: Sequence[int]) -> list[Case]:
        """Try all combinations of misreports of each pair of these sites."""
        ways = list(product(MISREPORTS, repeat=2))
        return [self.case(pair, how) for pair in shown(list(combinations(who, 2))) for how in ways]

    def together(self) -> list[Case]:
        """Try what all sites with a choice can do at once, each the same."""
        return [self.case(self.members, [how] * len(self.members)) for how in MISREPORTS]

    def confirm(self, case: Case, settings: ExchangeSettings = SETTINGS) -> float:
        """Return what a misreport gains where plans are within the allowed gap."""
        bids = {bus: MISREPORTS[name] for bus, name in zip(case.who, case.how, strict=True)}
        before = self.sealed(self.day, settings).bears
        after = self.sealed(self.bid(bids), settings).bears
        return float((before - after)[list(case.who)].sum())

    def noise(self) -> "np.typing.NDArray[np.float64]":
        """Return how much each site's bill differs between plans that are all within the gap."""
        first = self.sealed(self.day).bears
        others = [self.sealed(self.day, settings).bears for settings in VARIANTS]
        return np.max([np.abs(one - first) for one in [*others, self.truth.bears]], axis=0)


def shown(work: list) -> list:  # type: ignore[type-arg]
    """Say on standard error how much there is to do."""
    print(f"  {len(work)} sites or pairs, {len(MISREPORTS)} misreports each", file=sys.stderr)
    return work


def best(cases: list[Case], count: int = 1) -> list[Case]:
    """Return the cases that gain most."""
    return sorted(cases, key=lambda case: -case.gain)[:count]


def weight(study: Study, bus: int) -> float:
    """Return how much money a site's devices can move, its distance from the tariff included."""
    site = study.day.sites[bus]
    reach = float(np.max(np.abs(site.inject_p) @ (site.upper - site.lower), initial=0.0))
    return float(np.abs(site.linear) @ (site.upper - site.lower)) + reach * study.tariff


def row(study: Study, what: str, case: Case, noise: float) -> str:
    """Return one line of the table."""
    names = [str(study.day.sites[bus].name) for bus in case.who]
    who = " and ".join(names) if len(names) <= 2 else f"all {len(names)}"
    how = " and ".join(case.how) if len(set(case.how)) > 1 else case.how[0]
    bills = study.truth.bears[list(case.who)]
    share = 100.0 * case.gain / max(float(np.abs(bills).sum()), 1e-9)
    is_real = case.gain > max(study.uncertain, 1e-6 * abs(study.truth.cost))
    verdict = "none" if not is_real else "below noise" if case.gain <= noise else "gain"
    cells = [
        *(what, who, how, f"{bills.sum():.2f}", f"{case.gain:.2f}", f"{share:.2f} %"),
        *(f"{case.extra_percent:+.3f} %", f"{study.confirm(case):.2f}", f"{noise:.2f}", verdict),
    ]
    return "| " + " | ".join(cells) + " |"


def report(name: str, scenario: Scenario, sites_max: int, pairs_of: int) -> None:
    """Print one day's table."""
    print(f"{name}: every optimum exactly", file=sys.stderr)
    day = scenario.day()
    study = Study(day, Limits.of(day.network))
    tried = sorted(study.members, key=lambda bus: -weight(study, bus))[:sites_max]
    singles = study.singles(tried)
    ranked = [case.who[0] for case in best(singles, len(singles))]
    pairs = study.pairs(list(dict.fromkeys(ranked))[:pairs_of])
    noise = study.noise()
    allowed = SETTINGS.gap_max * abs(study.truth.cost)
    print(f"\n{name}: cost {study.truth.cost:.2f} {day.currency}, gap allowed {allowed:.2f}")
    print(f"{len(tried)} of {len(study.members)} sites with a choice tried alone")
    print(f"the oracle is uncertain by {study.uncertain:.0e} {day.currency}\n")
    print("| " + " | ".join(HEADER) + " |\n" + "|---" * len(HEADER) + "|")
    small = [case for case in singles if case.how[0] in SMALL]
    rows = [("ten per cent off", case) for case in best(small)]
    rows += [("alone", case) for case in best(singles, 3)]
    rows += [("a pair", case) for case in best(pairs, 2)]
    rows += [("all, the same", case) for case in best(study.together())]
    for what, case in rows:
        print(row(study, what, case, float(noise[list(case.who)].sum())))
    harmed = sum(case.gain < 0.0 for case in singles)
    print(f"\n{harmed} of {len(singles)} single misreports cost their site money.", flush=True)


def tightened(scenario: Scenario) -> Scenario:
    """Make voltage limits bind: impedances times 3, limits 0.94 and 1.05."""
    network = scenario.network
    branches = tuple(
        replace(one, resistance_pu=3.0 * one.resistance_pu, reactance_pu=3.0 * one.reactance_pu)
        for one in network.branches
    )
    limits = {"voltage_min_pu": 0.94, "voltage_max_pu": 1.05}
    return replace(scenario, network=replace(network, branches=branches, **limits))


def main() -> None:
    """Read the arguments and print one table a day."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("days", nargs="*", help="folders or bundled days")
    parser.add_argument("--tight", nargs="*", default=[], help="days, impedances times 3")
    parser.add_argument("--sites", type=int, default=12, help="tried alone, the largest first")
    parser.add_argument("--pairs-of", type=int, default=4, help="best of them, tried in pairs")
    given = parser.parse_args()
    for name in given.days:
        scenario = open_scenario(name)
        report(scenario.name, scenario, given.sites, given.pairs_of)
    for name in given.tight:
        scenario = open_scenario(name)
        report(f"{scenario.name}, tight", tightened(scenario), given.sites, given.pairs_of)


if __name__ == "__main__":
    main()
