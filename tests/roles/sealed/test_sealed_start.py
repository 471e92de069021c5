"""A sealed day that begins where another, or a refused plan of its own, ended [sealed 4.8]."""

from dataclasses import replace

import msgspec
import pytest

from veilgrid.admm.outcome import Coordination, RunStatus
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.roles.sealed.day import plan_sealed
from veilgrid.roles.sealed.start import Start
from veilgrid.secret import SeededRandomness

from .sealed_days import small


def planned(day: Day, start: object = None) -> Coordination:
    return plan_sealed(day, Limits.of(day.network), randomness=SeededRandomness(1), start=start)


@pytest.fixture(scope="module")
def first() -> tuple[Day, Coordination]:
    day = small(rating=0.8).day()
    return day, planned(day)


def test_the_second_day_begins_where_the_first_ended(first) -> None:
    """Else several days would cost several times what their differences need."""
    day, cold = first
    warm = planned(day, cold.warm)
    assert warm.status is RunStatus.CONVERGED
    assert warm.iteration_count <= cold.iteration_count // 2
    assert day.cost(warm.setpoints) == pytest.approx(day.cost(cold.setpoints), rel=1e-4)


def test_what_does_not_fit_is_said_and_left_aside(first) -> None:
    """Another site's targets, or another number of intervals, are worse than none."""
    day, cold = first
    start = cold.warm
    assert isinstance(start, Start)
    assert start.misfit(day) is None
    longer = small(8).day()
    others = replace(start, names=("x", *start.names[1:]))
    without = replace(start, wished=msgspec.structs.replace(start.wished, own=[1]))
    based = replace(start, base_mva=10.0 * start.base_mva)
    cases = ((start, longer, "intervals"), (others, day, "other sites"), (without, day, "other"))
    for misfit, told, word in (*cases, (based, day, "base")):
        assert word in (misfit.misfit(told) or "")
        assert Start.fitted(misfit, told) is None
    assert Start.fitted(None, day) is None
    assert planned(day, others).iteration_count == cold.iteration_count


def test_a_refused_plan_is_where_the_next_one_begins() -> None:
    """The plan within narrower limits is near the refused one; nobody need begin far off."""
    day = small(rating=0.5).day()
    found = planned(day)
    assert found.status is RunStatus.CONVERGED
    (refused,) = found.refused
    assert found.iteration_count < refused.iteration_count
