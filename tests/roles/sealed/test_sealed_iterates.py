"""In every iteration the committee's prices are those of the plain network step on the same wishes.

What sites answer is computed by the same code in the open and behind shares; so iterates differ
from those of plain exchange only where rows are looked at less often [sealed 3.2] and by rounding.
"""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from veilgrid.admm.network_step import NetworkStep
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.machine import Effect
from veilgrid.report.folders import open_scenario
from veilgrid.roles.sealed.course import Course
from veilgrid.roles.sealed.day import step_in_memory
from veilgrid.roles.sealed.kinds import WISH
from veilgrid.roles.sealed.register import POWER_BITS
from veilgrid.roles.sealed.sites import SiteGroup
from veilgrid.roles.sealed.step_rooms import EVERYTHING

from .sealed_days import cast_for, small


class Compared(SiteGroup):
    """Sites that repeat each network step in the open, from what they wish for."""

    def prepare(self, day: Day) -> None:
        self.still = day.demands(day.uncontrolled)
        self.errors: list[float] = []
        self.row_counts: list[int] = []
        self.net: NetworkStep | None = None

    def _submit(self, vectors: Mapping[int, Any], name: str) -> list[Effect]:
        if self.course.task.kind == WISH:
            self.wishes = {
                bus: np.array([float(int(value)) for value in one]) / 2.0**POWER_BITS
                for bus, one in vectors.items()
            }
        return super()._submit(vectors, name)

    def _read(self, own: Mapping[int, bytes]) -> None:
        super()._read(own)
        register, times = self.course.register, self.course.register.interval_count
        if self.course.task.kind != WISH:
            return
        if self.net is None or self.net.limits is not register.limits:
            give = register.give_p, register.give_q
            strength = register.strength_max
            self.net = NetworkStep(register.limits, register.buy, register.sell, *give, strength)
        self.net.inner = register.inner
        self.net.stiffen(np.ones(times) if register.stiffness is None else register.stiffness)
        wish_p, wish_q = (one.copy() for one in self.still)
        for bus, one in self.wishes.items():
            wish_p[bus], wish_q[bus] = one[:times], one[times : 2 * times]
        plain, members = self.net.project(wish_p, wish_q), self._mine.own
        off_p = np.abs(plain.price_p[members] - self._mine.price_p).max()
        off_q = np.abs(plain.price_q[members] - self._mine.price_q).max()
        self.errors.append(max(off_p, off_q) / np.abs(register.buy).max())
        self.row_counts.append(len(self.net.strengths()))


def compared(day: Day) -> Compared:
    """Run a day; return its sites."""
    cast = cast_for(day, Limits.of(day.network))
    group = cast.group
    group.__class__ = Compared
    assert isinstance(group, Compared)
    group.prepare(day)
    with cast.pool:
        step_in_memory(cast.machines)
    return group


def test_prices_are_those_of_the_plain_step_in_every_iteration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With limits that bind, a refused plan, narrowed limits and penalties that change."""
    monkeypatch.setattr(Course, "looks", property(lambda _: EVERYTHING))
    group = compared(small(2, rating=0.5, low=0.98).day())
    assert group.course.status == "converged"
    assert group.course.refused
    assert len(group.errors) > 20
    assert max(group.row_counts) >= 2
    assert max(group.errors) < 1e-6


def main(names: list[str]) -> None:
    """Print how far prices are off on whole days, as shares of the highest tariff."""
    for name in names:
        group = compared(open_scenario(name).day())
        errors = np.array(group.errors)
        print(f"{name}: {len(errors)} wishes, prices off by {errors.max():.1e} at most")


if __name__ == "__main__":
    main(sys.argv[1:])
