"""Attacks on what opens to all on a sealed day: rows and voltages, signs, sums [sealed 8.2].

None of it is a site's number, but each of it is an equation or a hint about all sites' numbers
together. Here everybody solves for one site: who sees only what opens, the operator with its
register and the payments, one other site with its own data, and, as a control, all others together.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits, charging_injection, flows
from veilgrid.grid.network import Floats
from veilgrid.roles.audit_score import Recovered, Target, beside, best, fitted, is_told_by_half
from veilgrid.roles.audit_truth import demands_of, is_unmet, stand_of, whole
from veilgrid.roles.sealed.heard import client_of
from veilgrid.roles.sealed.narrowing import narrowed
from veilgrid.roles.sealed.program import PRODUCT_BITS
from veilgrid.roles.sealed.step_set import AT_HIGH, AT_LOW, FREE
from veilgrid.roles.sealed.view import Views

PUBLIC: Final = "ledger and public"
OPERATOR: Final = "operator"
NEIGHBOUR: Final = "any one other site"
OTHERS: Final = "all other sites together"
VOLTAGES: Final = "who got the voltages, which stay shut"

POWER_FACTORS: Final = (0.0, 0.2, 0.33, 0.5)
"""Reactive demands, as shares of active ones, that an attacker tries as its prejudice."""

REACTIVE_SPREAD: Final = 0.05
"""How far from that share it takes a site's reactive demand to be."""


class Equations(NamedTuple):
    """What opened says of one interval's net demands: ``active p + reactive q = value``.

    Attributes
    ----------
    active, reactive : (equation, bus)
    value : (equation,), per-unit
    """

    interval: int
    active: Floats
    reactive: Floats
    value: Floats


class Known(NamedTuple):
    """What an attacker brings along.

    Attributes
    ----------
    spread : (bus,), >= 0
        How large it takes demands to be; 0 = it knows them.
    demand_p, demand_q : (bus, interval), per-unit
        What it knows; only rows without spread count.
    """

    role: str
    spread: Floats
    demand_p: Floats
    demand_q: Floats


def attack_opened(day: Day, views: Views, site: int) -> tuple[list[Recovered], list[Recovered]]:
    """Attack one site through everything that opened.

    Parameters
    ----------
    day, views, site
        As of any audit of `sealed`.

    Returns
    -------
    tuple
        Rows of who is promised to see nothing, and controls.
    """
    found, controls = list[Recovered](), list[Recovered]()
    # Where no plan keeps the limits, rows that bind say nothing of the demands that are left.
    for attack in (_attack_voltages,) if is_unmet(views) else (_attack_rows, _attack_voltages):
        rows, beyond = attack(day, views, site)
        found, controls = found + rows, controls + beyond
    rows, beyond = _attack_products(views, site)
    found += [*rows, *attack_signs(day, views, site), *_attack_prices(day, views, site)]
    return found, [*controls, *beyond]


# -- equations: rows that bind, voltages of refused plans -----------------------------------------


def _attack_rows(day: Day, views: Views, site: int) -> tuple[list[Recovered], list[Recovered]]:
    """Take each row that binds at the end for an equation between the final plan's demands."""
    register = views.public.register
    limits = views.coordination.limits or register.limits
    rows = [
        (int(t), int(number))
        for t, number, status in _last(views, "binding")["binding"]["rows"]
        if status == FREE
    ]
    chosen = [
        joined(t, [row_of(limits, number, t) for at, number in rows if at == t])
        for t in sorted({t for t, _ in rows})
    ]
    demands = day.demands(views.coordination.setpoints)
    return attack_equations(day, views, site, chosen, demands, "rows that bind")


def row_of(limits: Limits, number: int, interval: int) -> tuple[Floats, Floats, float]:
    """Return a row ``active p + reactive q <= bound`` as it holds in an interval."""
    active, reactive, bound = limits.row(number)
    return active, reactive, bound - limits.narrowing(number, interval)


def joined(interval: int, rows: Sequence[tuple[Floats, Floats, float]]) -> Equations:
    """Put equations of one interval together."""
    active, reactive, value = zip(*rows, strict=True)
    return Equations(interval, np.array(active), np.array(reactive), np.array(value))


def _attack_voltages(day: Day, views: Views, site: int) -> tuple[list[Recovered], list[Recovered]]:
    """Take places beyond limits for equations: of each refused plan, as if they stood at them.

    The control has the voltages themselves, which stay shut, and solves the same way.
    """
    found, controls = list[Recovered](), list[Recovered]()
    register, limits = views.public.register, views.public.register.limits
    for result in views.opened:
        shown = result.get("electrical", {}).get("shown")
        if not shown:
            continue
        demands = demands_of(day, views, int(result["task"]))
        places = [(int(b), int(t)) for name in ("low", "high") for b, t, _ in shown[name]]
        stands = {place: _planned(limits, shown, place) for place in places}
        how = "places of a refused plan, taken to stand at their limits"
        chosen = voltage_equations(limits, stands)
        rows, beyond = attack_equations(day, views, site, chosen, demands, how)
        found, controls = found + rows, controls + beyond
        voltage = flows(limits.tree, *demands).voltage_squared
        exact = voltage_equations(limits, {place: float(voltage[place]) for place in places})
        rows, beyond = attack_equations(day, views, site, exact, demands, "voltages of places")
        controls += [row._replace(role=VOLTAGES) for row in rows if row.role == PUBLIC] + beyond
        found += attack_losses(day, site, shown, demands)
        own = register.voltage_limits
        limits = narrowed(limits, own, day.interval_count, shown)
    return found, controls


def _planned(limits: Limits, shown: dict[str, Any], place: tuple[int, int]) -> float:
    """Return the squared voltage that a plan had to keep at a place."""
    is_low = any((int(b), int(t)) == place for b, t, _ in shown["low"])
    own, sign, side = (limits.squared_min, 1.0, 0) if is_low else (limits.squared_max, -1.0, 1)
    more = 0.0 if limits.correction is None else float(limits.correction[side][place])
    return float(own or 0.0) + sign * more


def voltage_equations(limits: Limits, voltages: Mapping[tuple[int, int], float]) -> list[Equations]:
    """Return what squared voltages of the lossless model say of demands, interval by interval.

    Parameters
    ----------
    limits
        On the network.
    voltages
        Squared per-unit by bus and interval.
    """
    charged = charging_injection(limits.tree)
    places: dict[int, list[tuple[Floats, Floats, float]]] = {}
    for (bus, interval), squared in voltages.items():
        active, reactive = limits.shared_resistance[bus], limits.shared_reactance[bus]
        value = limits.tree.slack_voltage_pu**2 - squared + float(reactive @ charged)
        places.setdefault(interval, []).append((active, reactive, value))
    return [joined(interval, rows) for interval, rows in sorted(places.items())]


def attack_losses(
    day: Day, site: int, shown: Mapping[str, Any], demands: tuple[Floats, Floats]
) -> list[Recovered]:
    """Read what branches carry off the differences of losses at both of their ends.

    Parameters
    ----------
    day, site
        Whom to attack.
    shown
        Bus, interval and difference of both models under ``low`` and ``high``.
    demands : (bus, interval), per-unit
        The truth, active and reactive.
    """
    tree, base = day.network.tree, day.network.base_mva
    network = day.network
    # A current is a power over a voltage, which is near its limit at these places.
    near = {"low": network.voltage_min_pu or 1.0, "high": network.voltage_max_pu or 1.0}
    missed = {
        (int(b), int(t)): near[name] ** 2 * lost for name in near for b, t, lost in shown[name]
    }
    carried = flows(tree, *demands)
    rows = []
    for bus in range(len(day.sites)):
        above = int(tree.parent[bus])
        times = [t for b, t in missed if b == bus and (above, t) in missed]
        if not times:
            continue
        own = np.array([missed[bus, t] - missed[above, t] for t in times])
        squared = float(tree.resistance_pu[bus] ** 2 + tree.reactance_pu[bus] ** 2)
        guess = np.sqrt(np.maximum(np.abs(own), 0.0) / max(squared, 1e-300)) * base
        truth = np.hypot(carried.active[bus, times], carried.reactive[bus, times]) * base
        quantity = "what its branch carries"
        target = Target(quantity, bus, "", np.arange(len(times)), truth, "MVA", 1.0)
        how = f"differences of losses at both ends of site {day.sites[bus].name}'s branch"
        rows.append((bus, beside(target, PUBLIC, guess, how)))
    mine = [row for bus, row in rows if bus == site]
    if rows:
        worst = max(
            (row for _, row in rows),
            key=lambda row: (row.share_recovered, -_against_a_guess(row)),
        )
        mine.append(worst._replace(quantity=f"{worst.quantity}, of whom it is told best"))
    return mine


def attack_equations(
    day: Day,
    views: Views,
    site: int,
    chosen: Sequence[Equations],
    demands: tuple[Floats, Floats],
    what: str,
) -> tuple[list[Recovered], list[Recovered]]:
    """Solve equations for one site in every role, and for whom they tell most about.

    Parameters
    ----------
    day, views, site
        As of any audit of `sealed`.
    chosen
        What is known, interval by interval.
    demands : (bus, interval), per-unit
        The truth, active and reactive.
    what
        Where the equations come from.
    """
    if not chosen:
        return [], []
    attackers = _attackers(day, views, site, demands)
    rows = [row for known in attackers for row in _solved(day, site, chosen, demands, known, what)]
    beyond = [one for one in rows if one.role == OTHERS]
    found = [one for one in rows if one.role != OTHERS]
    public = next(known for known in attackers if known.role == PUBLIC)
    everyone = [
        _solved(day, bus, chosen, demands, public, f"{what}, site {day.sites[bus].name}")[-1]
        for bus in range(len(day.sites))
        if public.spread[bus] > 0.0
    ]
    worst = max(everyone, key=lambda row: (row.share_recovered, -_against_a_guess(row)))
    return [*found, worst._replace(quantity=f"{worst.quantity}, of whom it is told best")], beyond


def _against_a_guess(row: Recovered) -> float:
    """Return an error as a share of the error of who sees nothing."""
    return row.max_error / max(row.baseline_error or 0.0, 1e-12)


def _attackers(day: Day, views: Views, site: int, demands: tuple[Floats, Floats]) -> list[Known]:
    """Return who solves with what: junctions are public, own data is known."""
    give = views.public.register.give_p
    is_customer = np.array([bus.kind == "customer" for bus in day.network.buses])
    even = is_customer.astype(np.float64)
    wide = even * np.where(give > 0.0, give / max(float(give.max()), 1e-300), 0.1)
    others = [bus for bus in day.flexible if bus != site][:1]
    without_own = even.copy()
    without_own[others] = 0.0
    alone = np.zeros_like(even)
    alone[site] = 1.0
    spreads = {PUBLIC: even, OPERATOR: wide, NEIGHBOUR: without_own, OTHERS: alone}
    return [Known(role, spread, *demands) for role, spread in spreads.items()]


def _solved(
    day: Day,
    site: int,
    chosen: Sequence[Equations],
    demands: tuple[Floats, Floats],
    known: Known,
    what: str,
) -> list[Recovered]:
    """Return rows of a site's active demand, and of what its own branch makes of both demands."""
    base, tree = day.network.base_mva, day.network.tree
    times = np.array([one.interval for one in chosen])
    own_p, own_q = (part[site, times] * base for part in demands)
    drops = float(tree.resistance_pu[site]), float(tree.reactance_pu[site])
    size = max(float(np.hypot(*drops)), 1e-300)
    weights = drops[0] / size, drops[1] / size
    count, places = len(times), np.arange(len(times))
    demand = Target("net demand", 0, "", places, own_p, "MW", 1.0)
    mixed = Target(
        "active and reactive demand as its branch adds them",
        *(0, "", places, weights[0] * own_p + weights[1] * own_q, "MVA", 1.0),
    )
    rows: list[list[Recovered]] = [[], []]
    for factor in POWER_FACTORS:
        guess = np.array([least(one, known, site, factor) for one in chosen]).T * base
        how = f"{what} in {count} intervals, likeliest demands that fit"
        rows[0].append(beside(demand, known.role, guess[0], how))
        rows[1].append(
            beside(mixed, known.role, weights[0] * guess[0] + weights[1] * guess[1], how)
        )
    return [best(one) for one in rows]


def least(given: Equations, known: Known, site: int, factor: float) -> tuple[float, float]:
    """Return a site's least active and reactive demand that fit equations, per-unit.

    Parameters
    ----------
    given
        Of one interval.
    known
        The attacker.
    site : index
        Whom it attacks.
    factor
        Reactive demand as a share of active demand before anything is known.
    """
    spread, t = known.spread, given.interval
    told = np.where(spread > 0.0, 0.0, 1.0)
    left = given.value - given.active @ (told * known.demand_p[:, t])
    left = left - given.reactive @ (told * known.demand_q[:, t])
    both = (given.active + factor * given.reactive) * spread
    # Where everything else is known, nothing speaks for a power factor.
    loose = 1.0 if known.role == OTHERS else REACTIVE_SPREAD
    table = np.concatenate([both, loose * given.reactive * spread], axis=1)
    found = np.linalg.lstsq(table, left, rcond=1e-9)[0]
    count = len(spread)
    active = spread[site] * found[site]
    return active, factor * active + loose * spread[site] * found[count + site]


# -- sums of products -----------------------------------------------------------------------------


def _attack_products(views: Views, site: int) -> tuple[list[Recovered], list[Recovered]]:
    """Guess from sums of squares how far a site moved in each iteration that was looked at."""
    times, tasks = views.public.register.interval_count, _answers(views)
    own, sums = [], []
    for number, products in tasks:
        name = client_of(site, f"answer {number}")
        if site not in views.public.flexible:
            return [], []
        own.append(whole(views, number, name)[2 * times + 2] / 2.0**PRODUCT_BITS)
        sums.append(products[0])
    if not own:
        return [], []
    truth, total = np.sqrt(np.maximum(own, 0.0)), np.array(sums)
    target = Target(
        "length of its movements", 0, "", np.arange(len(own)), truth, "in the metric", 1.0
    )
    give = views.public.register.give_p
    count = len(views.public.flexible)
    even = np.sqrt(np.maximum(total, 0.0) / count)
    wide = np.sqrt(np.maximum(total, 0.0) * give[site] / max(float(give.sum()), 1e-300))
    how = "its share of the sums of products"
    rows = [
        beside(target, PUBLIC, even, f"an even part of {len(own)} sums of products"),
        beside(target, OPERATOR, wide, f"{how}, by registered ranges"),
    ]
    columns = [even, np.log(np.maximum(even, 1e-12))]
    if not is_told_by_half(truth):
        how = "least squares on the sums, half known"
        rows.append(beside(target, PUBLIC, fitted(columns, truth), how))
    others = beside(target, OTHERS, truth, "the sums less their own: in the policy's table")
    return [best(rows[::2]), rows[1]], [others]


def _answers(views: Views) -> list[tuple[int, list[float]]]:
    return [
        (int(one["task"]), one["products"])
        for one in views.opened
        if one.get("products") and "gap" in one
    ]


# -- signs ----------------------------------------------------------------------------------------


def attack_signs(day: Day, views: Views, site: int) -> list[Recovered]:
    """Fit net demand to all bits that opened by interval, as if half of it were known."""
    count = day.interval_count
    columns: dict[str, Floats] = {}
    for one in views.opened:
        for name in ("stiffer", "softer"):
            columns.setdefault(name, np.zeros(count))[one.get(name, [])] += 1.0
        if "binding" in one:
            price = columns.setdefault("price", np.zeros(count))
            price += np.array(one["binding"]["price"], dtype=np.float64)
            rows = columns.setdefault("rows", np.zeros(count))
            np.add.at(rows, [int(t) for t, *_ in one["binding"]["rows"]], 1.0)
    truth = stand_of(day, views).demand_p[site] * day.network.base_mva
    target = Target("net demand", 0, "", np.arange(count), truth, "MW", 1.0)
    told = [part for part in columns.values() if np.ptp(part) > 0.0]
    guess = np.zeros_like(truth) if is_told_by_half(truth) else fitted(told, truth)
    judged = sum(1 for one in views.opened if "stiffer" in one)
    how = f"least squares on {judged} rounds of signs, directions and rows, fitted to half of it"
    return [beside(target, PUBLIC, guess, how)]


# -- rent and strength ----------------------------------------------------------------------------


def _attack_prices(day: Day, views: Views, site: int) -> list[Recovered]:
    """Work a site's prices out from tariffs, rows and their total strength; payment by them."""
    last = _last(views, "binding")
    register = views.public.register
    directions = np.array(last["binding"]["price"])
    middle = 0.5 * (day.buy + day.sell)
    guess = np.where(
        directions == AT_LOW, day.sell, np.where(directions == AT_HIGH, day.buy, middle)
    )
    rows = [
        (int(t), int(number)) for t, number, status in last["binding"]["rows"] if status != AT_LOW
    ]
    for t, number in rows:
        strength = float(last.get("strength", 0.0)) * register.unit / len(rows)
        guess[t] += strength * register.limits.row(number)[0][site]
    hours = day.horizon.hours * day.network.base_mva
    truth = views.coordination.price_p[site] / hours
    measure = f"{day.currency}/MWh"
    target = Target("its prices", 0, "", np.arange(len(truth)), truth, measure, 1.0)
    how = f"tariffs where the substation's price stands at one, {len(rows)} rows share the strength"
    return [beside(target, PUBLIC, guess / hours, how)._replace(is_in_table=True)]


def _last(views: Views, key: str) -> dict[str, Any]:
    return next(one for one in reversed(views.opened) if key in one)


__all__ = [
    "attack_equations",
    "attack_losses",
    "attack_opened",
    "attack_signs",
    "joined",
    "least",
    "row_of",
    "voltage_equations",
]
