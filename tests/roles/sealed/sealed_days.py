"""Small days on which parties and sites run, and sites that lie."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from veilgrid.admm.exchange import ExchangeSettings
from veilgrid.grid.day import Day
from veilgrid.grid.device import Battery, Generator, Photovoltaic
from veilgrid.grid.horizon import Horizon
from veilgrid.grid.lindistflow import Limits
from veilgrid.grid.network import Branch, Bus, BusId, Network
from veilgrid.grid.scenario import Scenario
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
    SetTimer,
    TimerFired,
)
from veilgrid.roles.sealed.day import SETTINGS, SITES, Cast, PublicDay, cast_of, costs_alone
from veilgrid.roles.sealed.message import Collected, DayEnded, Stopped
from veilgrid.roles.sealed.sites import SiteGroup
from veilgrid.roles.sealed.sites_kept import SiteOutcome
from veilgrid.secret import SeededRandomness


def small(intervals: int = 4, *, rating: float = np.inf, low: float | None = None) -> Scenario:
    """A feeder of five buses: sun, a battery, two dear generators, load everywhere."""
    names = [BusId(name) for name in ("s", "a", "b", "c", "d")]
    branches = tuple(
        Branch(
            parent=names[k - 1],
            child=names[k],
            resistance_pu=0.01,
            reactance_pu=0.01,
            rating_mva=rating if k == 1 else np.inf,
        )
        for k in range(1, 5)
    )
    network = Network(
        buses=tuple(Bus(name=n, kind="customer" if k else "slack") for k, n in enumerate(names)),
        branches=branches,
        base_mva=1.0,
        base_kv=10.0,
        slack_bus=names[0],
        slack_voltage_pu=1.0,
        voltage_min_pu=low,
        voltage_max_pu=None if low is None else 1.1,
        voltage_margin_pu=0.0,
    )
    times = np.arange(intervals)
    sun = 0.4 * np.abs(np.sin(1.0 + times))
    load = 0.2 + 0.1 * np.abs(np.cos(times + np.arange(5)[:, np.newaxis]))
    load[0] = 0.0
    devices = (
        Photovoltaic(name="sun", bus=names[1], available_mw=sun, p_max_mw=0.5, cost_linear=2.0),
        Battery(
            name="store",
            bus=names[2],
            charge_max_mw=0.2,
            discharge_max_mw=0.2,
            energy_max_mwh=0.3,
            energy_initial_mwh=0.1,
            energy_final_min_mwh=0.1,
            charge_efficiency=0.95,
            discharge_efficiency=0.95,
            cost_linear=1.0,
        ),
        Generator(
            name="gas",
            bus=names[3],
            p_min_mw=0.0,
            p_max_mw=0.4,
            q_per_p=0.1,
            cost_linear=50.0,
            cost_quadratic=60.0,
        ),
        Generator(
            name="oil",
            bus=names[4],
            p_min_mw=0.0,
            p_max_mw=0.5,
            q_per_p=0.0,
            cost_linear=55.0,
            cost_quadratic=40.0,
        ),
    )
    return Scenario(
        name="small",
        description="",
        currency="EUR",
        horizon=Horizon(
            start="2024-05-01T00:00:00+02:00",
            interval_count=intervals,
            interval_minutes=60,
        ),
        network=network,
        devices=devices,
        load_p_mw=load,
        load_q_mvar=0.2 * load,
        buy=60.0 + 20.0 * np.sin(times),
        sell=30.0 + 10.0 * np.sin(times),
    )


Change = Callable[[str, int, list[int]], list[int] | None]
"""What a liar makes of its numbers for a task kind in an iteration; None = silence."""


class LiarGroup(SiteGroup):
    """Sites of which some send other numbers than they should."""

    lies: dict[int, Change]

    def _submit(self, vectors: Any, name: str) -> list[Effect]:
        task, changed = self.course.task, dict(vectors)
        for bus, change in self.lies.items():
            if bus in changed:
                own = change(task.kind, task.iteration, [int(value) for value in changed[bus]])
                if own is None:
                    del changed[bus]
                else:
                    changed[bus] = own
        return super()._submit(changed, name)


@dataclass
class Ended:
    """How a day ended: what sites got, what parties saw, who stopped, and every message."""

    sites: SiteOutcome | None = None
    payer: Collected | None = None
    parties: list[DayEnded] = field(default_factory=list)
    stopped: dict[NodeId, Stopped] = field(default_factory=dict)
    now_ns: int = 0
    sent: list[tuple[NodeId, NodeId, Any]] = field(default_factory=list)

    @property
    def public(self) -> dict[str, Any]:
        assert self.sites is not None, self.stopped
        return self.sites.public

    @property
    def excluded(self) -> dict[int, str]:
        return {int(bus): reason for bus, reason in self.public["excluded"].items()}


def cast_for(day: Day, limits: Limits, *, seed: int = 1, **more: Any) -> Cast:
    settings: ExchangeSettings = more.pop("settings", SETTINGS)
    public = PublicDay.of(day, limits, settings)
    return cast_of(
        public, dict(enumerate(day.sites)), costs_alone(day), SeededRandomness(seed), **more
    )


def run_day(
    day: Day,
    limits: Limits,
    lies: dict[int, Change] | None = None,
    meddle: Callable[[NodeId, NodeId, Any], Any] | None = None,
    **more: Any,
) -> Ended:
    """Run a day; messages in order, timers when nothing else is left to do."""
    cast = cast_for(day, limits, **more)
    if lies:
        cast.group.__class__ = LiarGroup
        cast.group.lies = lies  # type: ignore[attr-defined]
    ended, machines = Ended(), cast.machines
    queue: deque[tuple[NodeId, Event]] = deque((name, TimerFired(START)) for name in machines)
    timers: dict[tuple[NodeId, str], int] = {}
    with cast.pool:
        while queue or (timers and ended.sites is None):
            if not queue:
                ended.now_ns = min(timers.values())
                due = [key for key, at_ns in timers.items() if at_ns == ended.now_ns]
                queue.extend((name, TimerFired(timer)) for name, timer in due)
                for key in due:
                    del timers[key]
            name, event = queue.popleft()
            for effect in machines[name].handle(event):
                _carry_out(name, effect, queue, timers, ended, meddle, machines)
    return ended


def _carry_out(
    name: NodeId,
    effect: Effect,
    queue: deque[tuple[NodeId, Event]],
    timers: dict[tuple[NodeId, str], int],
    ended: Ended,
    meddle: Callable[[NodeId, NodeId, Any], Any] | None,
    machines: dict[NodeId, Any],
) -> None:
    match effect:
        case Send(to, message) if to in machines:
            ended.sent.append((name, to, message))
            shown = message if meddle is None else meddle(name, to, message)
            if shown is not None:
                queue.append((to, Received(name, shown)))
        case SetTimer(timer, delay_ns):
            timers[name, timer] = ended.now_ns + delay_ns
        case Compute(job, kernel, arguments):
            queue.append((name, Computed(job, kernel(*arguments))))
        case Decide(SiteOutcome() as outcome):
            ended.sites = outcome
        case Decide(Collected() as outcome):
            ended.payer = outcome
        case Decide(DayEnded() as outcome):
            ended.parties.append(outcome)
        case Decide(Stopped() as stopped):
            ended.stopped[name] = stopped


def setpoints_of(day: Day, ended: Ended) -> list[np.ndarray]:
    """Return the plan; excluded sites do what nobody coordinates."""
    assert ended.sites is not None
    out = list(day.uncontrolled)
    for bus, octets in ended.sites.setpoints.items():
        out[bus] = np.frombuffer(octets, "<f8")
    return out


__all__ = ["SITES", "Change", "Ended", "LiarGroup", "cast_for", "run_day", "setpoints_of", "small"]
