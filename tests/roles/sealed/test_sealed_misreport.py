"""What misreporting costs gains: nothing where nobody moves a price, something behind a limit."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from veilgrid.grid.lindistflow import Limits
from veilgrid.grid.scenario import Scenario
from veilgrid.report.folders import open_scenario

from .sealed_days import small

GAS, OIL = 3, 4
TOOLS = Path(__file__).parents[3] / "tools"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """The script that prints the first table of [sealed 10]."""
    return script("misreport")


@pytest.fixture(scope="module")
def searcher(tool: ModuleType) -> ModuleType:
    """The script that prints the second one; it imports the first."""
    assert tool is sys.modules["misreport"]
    return script("best_response")


def study(tool: ModuleType, scenario: Scenario) -> object:
    return tool.Study(scenario.day(), Limits.of(scenario.network))


def flat(scenario: Scenario) -> Scenario:
    """One tariff for both directions: no site can move a price."""
    return replace(scenario, buy=np.full(4, 52.0), sell=np.full(4, 52.0))


def test_nobody_gains_where_nobody_moves_a_price(tool: ModuleType) -> None:
    """Theory's word: who takes prices as given bids best what is true."""
    found = study(tool, flat(small()))
    cases = [*found.singles(found.members), *found.pairs([GAS, OIL]), *found.together()]  # type: ignore[attr-defined]
    assert len(cases) > 60
    assert max(case.gain for case in cases) < 1e-5
    assert min(case.gain for case in cases) < -0.1, "some misreports cost their site money"


def test_who_stands_behind_a_limit_gains_by_asking_for_more(tool: ModuleType) -> None:
    """The control: with little import left, the two generators make the price."""
    found = study(tool, flat(small(rating=0.45)))
    (best,) = tool.best([*found.singles([GAS, OIL]), *found.pairs([GAS, OIL])])  # type: ignore[attr-defined]
    assert best.gain > 0.5
    assert best.extra_percent >= -1e-6, "the truth is the optimum of all"
    assert found.confirm(best) == pytest.approx(best.gain, abs=0.05)  # type: ignore[attr-defined]


def axes_of(searcher: ModuleType, hunt: object) -> tuple[object, ...]:
    """Everything a site can lie about at once."""
    site, tariff = hunt.site, hunt.study.tariff  # type: ignore[attr-defined]
    return (*searcher.asks(site, tariff), *searcher.offers(site), *searcher.loads(site))


@pytest.mark.parametrize("rule", ["tariff", "agreed"])
def test_no_search_gains_where_nobody_moves_a_price(
    tool: ModuleType, searcher: ModuleType, rule: str
) -> None:
    """Hidden load included: at one tariff the meter's difference costs what it would have."""
    hunt = searcher.Hunt(study(tool, flat(small())), GAS)
    axes = axes_of(searcher, hunt)
    assert {axis.name for axis in axes} == {"gas p asks", "gas p offers", "load bid"}  # type: ignore[attr-defined]
    found = hunt.best(axes, rule, [], 60)
    assert hunt.count > 20
    assert found.gains[rule] < 1e-5
    assert min(one.gains[rule] for one in hunt.tries.values()) < -0.1, "some bids cost money"


def test_a_search_gains_where_the_best_of_eight_loses(
    tool: ModuleType, searcher: ModuleType
) -> None:
    own = study(tool, flat(small(rating=0.45)))
    hunt = searcher.Hunt(own, GAS)
    (eight,) = tool.best(own.singles([GAS]))  # type: ignore[attr-defined]
    asks = tuple(searcher.asks(hunt.site, own.tariff))  # type: ignore[attr-defined]
    asked = hunt.best(asks, "agreed", [], 100)
    assert asked.gains["agreed"] > 0.1 > 0.0 > eight.gain
    assert asked.excess_pu < 1e-6
    under = hunt.confirm(asks, asked.bid, "agreed")
    assert under == pytest.approx(asked.gains["agreed"], abs=0.05)


def test_a_cap_on_asking_leaves_most_to_who_can_offer_less(
    tool: ModuleType, searcher: ModuleType
) -> None:
    """On six-bus the farm gains by hiding sun what it would by naming a price."""
    scenario = open_scenario("six-bus")
    hunt = searcher.Hunt(study(tool, scenario), 2)
    assert str(hunt.site.name) == "farm"
    stages = {one.name: one for one in searcher.stages(hunt)}
    capped = next(one for name, one in stages.items() if name.startswith("cap"))
    assert all(" offers" in axis.name for axis in capped.axes)
    found = hunt.best(capped.axes, "agreed", [], 30)
    assert found.gains["agreed"] > 0.2 * abs(hunt.study.truth.bears[2])
    full = next(one for name, one in stages.items() if "no less offered" in name)
    assert not full.axes


def test_hidden_load_is_paid_by_the_meter(tool: ModuleType, searcher: ModuleType) -> None:
    """An oracle by hand: the plan's part at the agreed price, the rest by the rule."""
    scenario = small(rating=0.45)
    own = study(tool, scenario)
    hunt = searcher.Hunt(own, GAS)
    (axis,) = searcher.loads(hunt.site)
    day, said = own.day, hunt.said([axis], [0.5])  # type: ignore[attr-defined]
    plan = searcher.central(said, own.limits)  # type: ignore[attr-defined]
    site, x = day.sites[GAS], plan.setpoints[GAS]
    hidden = 0.5 * site.load_p
    active, reactive = plan.price_p[GAS], plan.price_q[GAS]
    planned = active @ (site.demand_p(x) - hidden)
    planned += reactive @ (site.demand_q(x) - 0.5 * site.load_q)
    more = active @ hidden + reactive @ (0.5 * site.load_q)
    due = {"tariff": day.buy @ hidden, "agreed": more}
    before = own.truth.bears[GAS]  # type: ignore[attr-defined]
    for rule, more in due.items():
        bears = planned + more + site.cost(x)
        gain = hunt.tried([axis], (0.5,)).gains[rule]
        assert gain == pytest.approx(before - bears, abs=1e-4)
