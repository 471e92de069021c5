"""Cleared trades on a network: checked by AC power flow, cleared again by zone if a limit binds."""

from dataclasses import replace
from fractions import Fraction
from typing import Any, Final

import numpy as np

from veilgrid.cli._market import Round, chosen_rule, clear_orders, report_of
from veilgrid.cli._market_orders import WEIGHT_STEPS, Grid, Orders, grid_of
from veilgrid.errors import Finding, InputError
from veilgrid.grid.acflow import ElectricalCheck, electrical_check
from veilgrid.grid.network import Network
from veilgrid.grid.scenario import Scenario
from veilgrid.mpc.layout import Integers
from veilgrid.report.folders import open_scenario
from veilgrid.risk.auction import Cleared
from veilgrid.risk.flags import Book
from veilgrid.risk.market_zones import next_cut, zones_of

CUTS_MAX: Final = 50


def play_on_network(
    orders: Orders, scenario: str, interval: int, rule: str, seed: int | None
) -> dict[str, Any]:
    """Return the JSON object of ``veilgrid market --scenario``; quantities are in MW.

    Raises
    ------
    InputError
        A bus or the interval does not exist.
    """
    day = open_scenario(scenario)
    places = _places(orders, day, interval)
    grid, named = grid_of(orders), chosen_rule(orders.book, rule)
    cuts: list[int] = []
    whole: Round | None = None
    before = _check(day, interval, np.zeros(len(places)), places)
    while True:
        zones = zones_of(day.network.tree, cuts)
        rounds = _clear_zones(orders, grid, zones[places], named, seed, whole)
        whole = whole or rounds[0]
        traded = sum(done.traded for done in rounds.values())
        signed = np.where(orders.book.is_buy, 1.0, -1.0) * np.asarray(traded, np.float64)
        part = 1 if (orders.weights == WEIGHT_STEPS).all() else WEIGHT_STEPS
        check = _check(day, interval, signed * float(grid.step) / part, places)
        cut = None if check.passed else next_cut(day.network, check.findings, cuts)
        if check.passed or not before.passed or cut is None or len(cuts) >= CUTS_MAX:
            break
        cuts.append(cut)
    withheld = not check.passed and before.passed
    rounds[min(rounds)] = replace(rounds[min(rounds)], kinds=whole.kinds, draw=whole.draw)
    return _report(orders, grid, rounds, named, check, day.network, cuts, before, withheld)


def _places(orders: Orders, day: Scenario, interval: int) -> Integers:
    known = {str(bus.name): place for place, bus in enumerate(day.network.buses)}
    findings = [
        Finding("BIDS column bus", f"{bus!r} is no bus of the scenario")
        for bus in sorted(set(orders.buses))
        if bus not in known
    ]
    count = day.horizon.interval_count
    if not 0 <= interval < count:
        findings.append(Finding("--interval", f"found {interval}, expected 0..{count - 1}"))
    if findings:
        raise InputError(findings)
    return np.array([known[bus] for bus in orders.buses], np.int64)


def _check(day: Scenario, interval: int, demand_mw: Any, places: Integers) -> ElectricalCheck:
    real = np.array(day.load_p_mw[:, interval], np.float64)
    np.add.at(real, places, demand_mw)
    reactive = np.array(day.load_q_mvar[:, interval], np.float64)
    base = day.network.base_mva
    return electrical_check(day.network, real[:, None] / base, reactive[:, None] / base)


def _clear_zones(
    orders: Orders, grid: Grid, zones: Integers, rule: str, seed: int | None, whole: Round | None
) -> dict[int, Round]:
    """Clear each zone by itself; a zone's round is as long as the whole file.

    Flags and caps are those of the whole market, found in its first round.
    """
    found = {}
    part = 1 if (orders.weights == WEIGHT_STEPS).all() else orders.weights
    counted = grid.quantities
    if whole is not None:
        counted = whole.effective // np.maximum(part, 1)
    for zone in sorted(set(zones.tolist())):
        rows = np.flatnonzero(zones == zone)
        book = _chosen(grid.book, rows, counted[rows])
        mine = replace(grid, ticks=grid.ticks[rows], quantities=counted[rows], book=book)
        empty = np.zeros(len(zones), np.int64)
        done = Round(Cleared(rule, 0, 0, 0, 0, 0, 0, 0), empty, empty, {})
        if mine.quantities.sum():
            one = clear_orders(
                mine, book.is_buy, orders.weights[rows], rule, seed, screens=whole is None
            )
            traded, effective = empty.copy(), empty.copy()
            traded[rows], effective[rows] = one.traded, one.effective
            rejected = {str(rows[int(name)]): why for name, why in one.rejected.items()}
            done = replace(one, traded=traded, effective=effective, rejected=rejected, opened=None)
        found[zone] = done
    return found


def _chosen(book: Book, rows: Integers, steps: Integers) -> Book:
    names = [book.participants[int(row)] for row in rows]
    return Book(
        names,
        book.is_buy[rows],
        book.prices[rows],
        book.quantities[rows],
        book.capabilities[rows],
        steps,
        book.step,
    )


def _report(
    orders: Orders,
    grid: Grid,
    rounds: dict[int, Round],
    rule: str,
    check: ElectricalCheck,
    network: Network,
    cuts: list[int],
    before: ElectricalCheck,
    withheld: bool,
) -> dict[str, Any]:
    parts = [report_of(orders, grid, done, rule) for done in rounds.values()]
    volume = sum(part["volume"] for part in parts)
    names = ["rest", *(str(network.buses[cut].name) for cut in cuts)]
    price = sum(part["price"] * part["volume"] for part in parts if part["volume"])
    report = {
        **parts[0],
        "price": price / volume if volume else None,
        "volume": volume,
        "welfare": sum(part["welfare"] for part in parts),
        "welfare_optimum": sum(part["welfare_optimum"] for part in parts),
        "trades": [trade for part in parts for trade in part["trades"]],
        "surplus": float(sum(Fraction(str(part["surplus"])) for part in parts)),
        "seconds": sum(part["seconds"] for part in parts),
        "bytes": sum(part["bytes"] for part in parts),
        "zones": [
            {"zone": names[zone], "price": part["price"], "volume": part["volume"]}
            for zone, part in zip(rounds, parts, strict=True)
        ],
        "network": {
            "passed": check.passed,
            "passed_before_trading": before.passed,
            "withheld": withheld,
            "vm_min_pu": check.vm_min_pu,
            "vm_max_pu": check.vm_max_pu,
            "loading_max": check.loading_max,
            "findings": [str(finding) for finding in check.findings],
        },
    }
    if withheld:
        report |= {"price": None, "volume": 0.0, "welfare": 0.0, "trades": []}
    return report
