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

from .sealed_days import small

GAS, OIL = 3, 4
TOOL = Path(__file__).parents[3] / "tools" / "misreport.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """The script that prints the table of [sealed 10]."""
    spec = importlib.util.spec_from_file_location("misreport", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["misreport"] = module
    spec.loader.exec_module(module)
    return module


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
