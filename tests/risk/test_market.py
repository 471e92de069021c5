"""A market round end to end: files, caps, flags, money, and trades on a network."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from veilgrid.cli import _market
from veilgrid.cli._capacity import capacity
from veilgrid.cli._market import clear_orders, market, report_of
from veilgrid.cli._market_orders import grid_of, read_orders
from veilgrid.risk.flags import Book, capped, flags_of, next_weight, payment_cycles
from veilgrid.risk.market_zones import zones_of

HEADER = "participant,side,price,quantity"
Line = tuple[str, str, float, float]


def written(folder: Path, lines: Sequence[Sequence[object]], header: str = HEADER) -> Path:
    path = folder / "bids.csv"
    rows = [",".join(str(value) for value in line) for line in lines]
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def called(*arguments: object, verb: Any = market) -> dict[str, Any]:
    done = CliRunner().invoke(verb, [*(str(one) for one in arguments), "--json", "--seed", "1"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def refused(*arguments: object, verb: Any = market) -> str:
    done = CliRunner().invoke(verb, [*(str(one) for one in arguments), "--json"])
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    return done.stderr


def neighbours(count: int, seed: int = 1, size: float = 4.0) -> list[Line]:
    """As many buyers as sellers, with usual households' prices in ct/kWh and quantities in kWh."""
    rng = np.random.default_rng(seed)
    buys = [
        (f"b{k}", "buy", round(rng.normal(24, 4), 2), round(rng.uniform(0.5, size), 2))
        for k in range(count)
    ]
    sells = [
        (f"s{k}", "sell", round(rng.normal(20, 4), 2), round(rng.uniform(0.5, size), 2))
        for k in range(count)
    ]
    return buys + sells


def plainly(
    folder: Path, lines: Sequence[Sequence[object]], header: str = HEADER
) -> dict[str, Any]:
    """Return the report of a round in the clear, under the rule for large markets."""
    orders, _ = read_orders(written(folder, lines, header))
    grid = grid_of(orders)
    rule = "uniform-price"
    done = clear_orders(grid, orders.book.is_buy, orders.weights, rule, None, plain=True)
    return report_of(orders, grid, done, rule)


def best_welfare(lines: Sequence[Line]) -> float:
    buys = sorted([[-price, size] for _, side, price, size in lines if side == "buy"])
    sells = sorted([[price, size] for _, side, price, size in lines if side == "sell"])
    total = 0.0
    while buys and sells and -buys[0][0] >= sells[0][0]:
        traded = min(buys[0][1], sells[0][1])
        total += traded * (-buys[0][0] - sells[0][0])
        for side in (buys, sells):
            side[0][1] -= traded
            if side[0][1] <= 1e-12:
                side.pop(0)
    return total


# -- the verb ---------------------------------------------------------------------------


def test_two_buyers_and_two_sellers_by_hand(tmp_path: Path) -> None:
    """Below thirty a side 8 is the price, because the second buyer does not trade."""
    lines = [("a", "buy", 10, 1), ("b", "buy", 8, 1), ("c", "sell", 2, 1), ("d", "sell", 4, 1)]
    report = called(written(tmp_path, lines))
    assert (report["rule"], report["price"], report["volume"]) == ("trade-reduction", 8, 1)
    assert report["welfare"] == 8
    paid = {trade["participant"]: trade["payment"] for trade in report["trades"]}
    assert paid == {"a": 8, "c": -8}
    report = called(written(tmp_path, lines), "--rule", "uniform-price")
    assert (report["price"], report["volume"], report["welfare"]) == (6, 2, 12)
    assert report["bytes"] > 0
    assert report["seconds"] > 0


@pytest.mark.parametrize(
    "lines",
    [
        [("a", "buy", 10, 1)],
        [("a", "sell", 10, 1)],
        [("a", "buy", 10, 0), ("b", "sell", 5, 0)],
        [("a", "buy", 10, 0), ("b", "sell", 5, 3)],
        [("a", "buy", 4, 1), ("b", "sell", 5, 1)],
        [],
    ],
)
@pytest.mark.parametrize("rule", ["auto", "uniform-price"])
def test_where_nothing_can_be_traded_there_is_no_price(
    tmp_path: Path, lines: list[Line], rule: str
) -> None:
    report = called(written(tmp_path, lines), "--rule", rule)
    assert report["price"] is None
    assert (report["volume"], report["welfare"], report["trades"]) == (0, 0, [])


def test_a_market_of_neighbours_trades_the_optimum_and_money_adds_up(tmp_path: Path) -> None:
    lines = neighbours(40)
    report = called(written(tmp_path, lines), "--out", tmp_path / "out")
    assert report["rule"] == "uniform-price"
    assert report["welfare"] == pytest.approx(best_welfare(lines), rel=1e-6)
    limits = {name: (side, price) for name, side, price, _ in lines}
    money = [round(trade["payment"] * 1e6) for trade in report["trades"]]
    assert sum(money) == 0
    for trade in report["trades"]:
        side, limit = limits[trade["participant"]]
        unit = abs(trade["payment"]) / trade["quantity"]
        assert unit <= limit + 1e-5 if side == "buy" else unit >= limit - 1e-5
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Supply, demand and where they meet" in page
    assert json.loads((tmp_path / "out" / "market.json").read_text(encoding="utf-8")) == report


@given(
    data=st.lists(
        st.tuples(
            st.booleans(),
            st.one_of(
                st.sampled_from([0.0, 20.0, 20.01, -500.0, 1e-6, 1e9]),
                st.floats(-4000, 4000, allow_nan=False),
            ),
            st.sampled_from([0.0, 0.001, 1.0, 2.5, 3.0]),
        ),
        min_size=1,
        max_size=40,
    )
)
@settings(max_examples=60, deadline=None)
def test_on_any_file_the_welfare_is_that_of_the_plain_optimum(
    tmp_path_factory: pytest.TempPathFactory, data: list[tuple[bool, float, float]]
) -> None:
    """Clustered prices, one bidder, no crossing, equal prices, a huge range."""
    lines = [
        (f"p{k}", "buy" if buys else "sell", price, size)
        for k, (buys, price, size) in enumerate(data)
    ]
    report = plainly(tmp_path_factory.mktemp("any"), lines)
    book = Book(
        [line[0] for line in lines],
        np.array([line[1] == "buy" for line in lines]),
        np.array([line[2] for line in lines]),
        np.array([line[3] for line in lines]),
        np.full(len(lines), np.nan),
    )
    counted = zip(lines, capped(book).tolist(), strict=True)
    best = best_welfare([(name, side, price, size) for (name, side, price, _), size in counted])
    micro = 1e-6  # Money is kept in micro-units; prices of 1e-50 differ by less.
    assert report["welfare"] >= 0.999 * best - micro * max(report["volume"], 1.0)
    for trade in report["trades"]:
        _, side, limit, _ = lines[int(trade["participant"][1:])]
        gain = limit - report["price"] if side == "buy" else report["price"] - limit
        assert gain >= -report["tick"] * (1 + 1e-6)


def test_every_fault_of_a_file_is_named_at_once(tmp_path: Path) -> None:
    lines = [("", "buy", 1, 1), ("b", "by", "x", -1), ("c", "sell", "nan", 2), ("d", "sell", 3)]
    told = refused(written(tmp_path, lines))
    for part in (
        "bids.csv row 2, column participant",
        "bids.csv row 3, column side",
        "bids.csv row 3, column price",
        "bids.csv row 3, column quantity",
        "bids.csv row 4, column price",
        "bids.csv row 5",
    ):
        assert part in told
    assert "column quantity: is missing" in refused(written(tmp_path, [], "participant,side,price"))
    assert "cannot be read" in refused(tmp_path / "nowhere.csv")


def test_weights_out_of_range_are_findings(tmp_path: Path) -> None:
    lines = [("a", "buy", 1, 1, 1.5, -2)]
    told = refused(written(tmp_path, lines, HEADER + ",weight,capability"))
    assert "column weight" in told
    assert "column capability" in told


def test_weights_lower_quantities_and_leave_prices_alone(tmp_path: Path) -> None:
    lines = [("a", "buy", 30, 10, 0.1), ("b", "buy", 25, 10, 1), ("c", "sell", 20, 40, 1)]
    report = plainly(tmp_path, lines, HEADER + ",weight")
    traded = {trade["participant"]: trade["quantity"] for trade in report["trades"]}
    assert traded == {"a": 1.0, "b": 10.0, "c": 11.0}


# -- manipulation ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_a_single_bid_moves_the_price_by_at_most_three_tenths_of_a_cent(
    tmp_path: Path, seed: int
) -> None:
    """A spoof of half the demand at the highest price, or of half the supply for nothing."""
    lines = neighbours(150, seed)
    price = plainly(tmp_path, lines)["price"]
    demand = sum(line[3] for line in lines if line[1] == "buy")
    for side, limit in (("buy", 90.0), ("sell", 0.0)):
        for size in (demand, 1e9):
            spoofed = plainly(tmp_path, [*lines, ("spoof", side, limit, size)])
            assert abs(spoofed["price"] - price) <= 0.3
            assert ("spoof", "spoof") in flagged(spoofed)


def flagged(report: dict[str, Any]) -> set[tuple[str, str]]:
    return {(flag["participant"], flag["kind"]) for flag in report["flags"]}


def test_labelled_manipulations_are_flagged_and_honest_neighbours_are_not(tmp_path: Path) -> None:
    honest = [(*line, line[3]) for line in neighbours(60)]
    labelled = [
        ("spoofer", "buy", 60.0, 400.0, ""),
        ("washer", "buy", 26.0, 2.0, ""),
        ("washer", "sell", 19.0, 2.0, ""),
        ("withholder", "sell", 12.0, 0.5, 6.0),
        ("boaster", "sell", 15.0, 5.0, 2.0),
    ]
    found = flagged(plainly(tmp_path, honest + labelled, HEADER + ",capability"))
    wanted = {
        ("spoofer", "spoof"),
        ("washer", "wash"),
        ("withholder", "withholding"),
        ("boaster", "out-of-capability"),
    }
    assert wanted <= found
    serious = {"spoof", "wash", "withholding", "out-of-capability"}
    guilty = {name for name, kind in found if kind in serious}
    assert guilty == {"spoofer", "washer", "withholder", "boaster"}


def test_a_seller_whose_price_moves_the_market_is_flagged(tmp_path: Path) -> None:
    lines: list[Line] = [(f"b{k}", "buy", 50.0, 1.0) for k in range(10)]
    lines += [(f"s{k}", "sell", 10.0 + k, 1.0) for k in range(7)]
    lines += [("dear", "sell", 48.0, 3.0)]
    found = flagged(plainly(tmp_path, lines))
    assert ("dear", "conduct-impact") in found
    assert ("dear", "outlier") in found


def test_who_is_needed_to_meet_demand_is_told() -> None:
    book = Book(
        ["a", *"bcdefghij"],
        np.array([True] + [False] * 9),
        np.full(10, 10.0),
        np.array([10.0, 5.0] + [1.0] * 8),
        np.full(10, np.nan),
    )
    kinds = {(one.participant, one.kind) for one in flags_of(book, 10.0, 10.0, {})}
    assert ("b", "pivotal") in kinds
    assert ("c", "pivotal") not in kinds


def test_caps_bind_only_on_those_who_stand_out_without_proof() -> None:
    sizes = np.array([1.0] * 39 + [60.0])
    names = [str(k) for k in range(40)]
    free = Book(names, np.ones(40, bool), np.ones(40), sizes, np.full(40, np.nan))
    assert capped(free)[:39].tolist() == [1.0] * 39
    assert capped(free)[39] == pytest.approx(2.0, rel=2**0.125 - 1), "two middle ones, to a class"
    proved = Book(names, np.ones(40, bool), np.ones(40), sizes, np.full(40, 50.0))
    assert capped(proved)[39] == 50.0


def test_payments_that_go_round_are_flagged() -> None:
    rounds = [("a", "b", 10.0), ("b", "a", 9.8), ("c", "d", 10.0), ("d", "c", 1.0)]
    assert {one.participant for one in payment_cycles(rounds)} == {"a", "b"}


def test_flags_lower_the_next_weight_and_good_rounds_restore_it() -> None:
    weight = next_weight(1.0, frozenset({"spoof"}))
    assert weight == pytest.approx(0.1)
    assert next_weight(weight, frozenset({"wash"})) == 0.02
    rounds = 0
    while weight < 1.0:
        weight, rounds = next_weight(weight, frozenset()), rounds + 1
    assert rounds == 10


# -- on a network ---------------------------------------------------------------------------


def test_trades_that_the_network_carries_pass_the_check(tmp_path: Path) -> None:
    lines = [
        ("a", "buy", 60, 0.2, "village"),
        ("b", "buy", 55, 0.1, "school"),
        ("c", "sell", 40, 0.2, "farm"),
        ("d", "sell", 58, 0.1, "depot"),
    ]
    path = written(tmp_path, lines, HEADER + ",bus")
    report = called(path, "--scenario", "six-bus", "--rule", "uniform-price")
    assert report["network"]["passed"]
    assert [zone["zone"] for zone in report["zones"]] == ["rest"]
    assert report["volume"] == pytest.approx(0.2)


def test_trades_beyond_a_rating_are_cleared_again_by_zone(tmp_path: Path) -> None:
    """The farm offers more than its branch of 2 MVA carries: it has to trade with its like."""
    lines = [
        ("a", "buy", 60, 5, "mill"),
        ("b", "sell", 40, 5, "farm"),
        ("c", "sell", 50, 1, "mill"),
        ("d", "buy", 45, 0.5, "farm"),
    ]
    path = written(tmp_path, lines, HEADER + ",bus")
    report = called(path, "--scenario", "six-bus", "--rule", "uniform-price")
    assert report["network"]["passed"]
    assert [zone["zone"] for zone in report["zones"]] == ["rest", "farm"]
    traded = {trade["participant"]: trade["quantity"] for trade in report["trades"]}
    assert traded == {"a": 1.0, "c": 1.0, "b": 0.5, "d": 0.5}
    assert "bus 'moon'" not in refused(path, "--scenario", "six-bus", "--interval", "9999")
    stranger = written(tmp_path, [("a", "buy", 60, 5, "moon")], HEADER + ",bus")
    assert "'moon' is no bus" in refused(stranger, "--scenario", "six-bus")


def test_zones_are_subtrees() -> None:
    from veilgrid.report.folders import open_scenario

    network = open_scenario("six-bus").network
    names = [str(bus.name) for bus in network.buses]
    zones = zones_of(network.tree, [names.index("mill"), names.index("farm")])
    assert zones[names.index("grid")] == 0
    assert zones[names.index("mill")] == 1
    assert zones[names.index("farm")] == 2


# -- the verb on fleets ---------------------------------------------------------------------------


def fleet(folder: Path, lines: Sequence[str], header: str) -> Path:
    path = folder / "fleet.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


FLEET = "device,capacity_kw,failure_probability"


def test_three_batteries_by_hand(tmp_path: Path) -> None:
    path = fleet(tmp_path, [f"d{k},10,0.1" for k in range(3)], FLEET)
    report = called(path, "--confidence", "0.95", verb=capacity)
    assert report["capacity_kw"] == pytest.approx(20)
    assert report["mean_kw"] == pytest.approx(27)
    assert report["certified_kw"] <= report["cvar_kw"] <= report["capacity_kw"]
    assert (report["devices"], report["rejected"]) == (3, [])
    assert report["seconds"] > 0


def test_a_common_shock_lowers_what_can_be_relied_on(tmp_path: Path) -> None:
    lines = [f"d{k},5,0.02,{1.0 if k < 20 else 0.02}" for k in range(200)]
    path = fleet(tmp_path, lines, FLEET + ",storm")
    shocks = tmp_path / "shocks.csv"
    shocks.write_text("scenario,probability\nstorm,0.02\n", encoding="utf-8")
    with_shock = called(path, "--scenarios", shocks, "--out", tmp_path / "out", verb=capacity)
    without = called(path, verb=capacity)
    assert with_shock["capacity_kw"] < 0.95 * without["capacity_kw"]
    assert [one["scenario"] for one in with_shock["scenarios"]] == ["usual", "storm"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "How likely less power is there" in page


def test_faults_of_a_fleet_are_named_at_once(tmp_path: Path) -> None:
    path = fleet(tmp_path, ["a,-1,0.1", "a,5,1.2", ",x,0.5", "b,nan,0.1"], FLEET)
    shocks = tmp_path / "shocks.csv"
    shocks.write_text("scenario,probability\nstorm,0.7\nflood,0.6\n", encoding="utf-8")
    told = refused(path, "--scenarios", shocks, verb=capacity)
    for part in (
        "fleet.csv row 2, column capacity_kw",
        "fleet.csv row 3, column device",
        "fleet.csv row 3, column failure_probability",
        "fleet.csv row 4, column device",
        "fleet.csv row 4, column capacity_kw",
        "fleet.csv row 5, column capacity_kw",
        "fleet.csv has no column storm",
        "probabilities add up to 1.3",
    ):
        assert part in told
    assert "--confidence" in refused(path, "--confidence", "1", verb=capacity)
    assert "holds no devices" in refused(fleet(tmp_path, [], FLEET), verb=capacity)


def test_a_fleet_of_nothing_has_no_capacity(tmp_path: Path) -> None:
    report = called(fleet(tmp_path, ["a,0,0.1", "b,0,0"], FLEET), verb=capacity)
    assert report["mean_kw"] == report["capacity_kw"] == report["certified_kw"] == 0


def test_help_says_what_the_local_run_shows() -> None:
    assert "without showing any bid" in (_market.market.help or "")
