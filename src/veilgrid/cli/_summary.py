"""A planned day as the JSON object of the contract, and as a short table for a person."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from veilgrid.admm.outcome import RunStatus
from veilgrid.admm.settlement import MICRO
from veilgrid.grid.acflow import ac_flow
from veilgrid.grid.network import Floats
from veilgrid.grid.scenario import Scenario
from veilgrid.report.results import RunRecord
from veilgrid.report.tables import tables_of
from veilgrid.roles.obstacles import Obstacle
from veilgrid.roles.operator import DayPlan, exposed

Summary = dict[str, Any]


def finite(value: float | None) -> float | None:
    """Return a number that JSON can hold; infinite and undefined become null."""
    return None if value is None or not math.isfinite(value) else float(value)


OWN_COORDINATION = {
    "exchange": "exchange",
    "masked": "exchange",
    "neighbour": "neighbour",
    "neighbour-ledger": "neighbour",
    "sealed": "exchange",
}
"""How a scheme coordinates unless told otherwise; the others have one problem for all."""


def summary_of(
    plan: DayPlan, scenario: Scenario, seconds: float, coordination: str | None = None
) -> Summary:
    """Return the keys of ``run --json`` [contract]."""
    outcome = plan.outcome
    last = outcome.history[-1] if outcome.history else None
    has_plan = plan.settlement is not None
    certificate = _certificate(plan)
    return {
        "scheme": plan.scheme,
        "coordination": coordination or OWN_COORDINATION.get(plan.scheme),
        "scenario": scenario.name,
        "status": str(outcome.status),
        "cost": finite(plan.cost),
        "currency": scenario.currency,
        "cost_alone": finite(plan.cost_alone),
        "saving_percent": saving_percent(plan.cost, plan.cost_alone),
        "iterations": outcome.iteration_count,
        "iterations_total": plan.iteration_count_total,
        "primal_residual": _residual(last.primal if last else None, certificate["primal"]),
        "dual_residual": _residual(last.dual if last else None, certificate["dual"]),
        "seconds": seconds,
        "certificate": certificate,
        "ac_check": _ac_check(plan),
        "settlement": _settlement(plan) if has_plan else _no_settlement(),
        "messages": outcome.message_count,
        "bytes": outcome.byte_count,
        "exposed": exposed(plan.scheme, coordination),
        "margin_pu": plan.margin_pu,
        "replans": [
            {
                "margin_pu": replan.margin_pu,
                "rating_share": replan.rating_share,
                "cost": replan.cost,
                "iterations": replan.iteration_count,
                "findings": [str(finding) for finding in replan.findings],
            }
            for replan in plan.replans
        ],
        "infeasible": [obstacle_summary(found) for found in plan.obstacles],
        **({"opened": outcome.opened} if outcome.opened else {}),
    }


def saving_percent(cost: float | None, cost_alone: float) -> float | None:
    """Return the saving against everybody alone, per cent of the cost alone."""
    if cost is None or cost_alone == 0.0:
        return None
    return 100.0 * (cost_alone - cost) / abs(cost_alone)


def _residual(last: float | None, certified: float | None) -> float | None:
    """Return the residual of the last iteration, or what was certified where it measured none."""
    known = finite(last)
    return certified if known is None else known


def _certificate(plan: DayPlan) -> Summary:
    found = plan.certificate
    if found is None:
        return {"accepted": False, "primal": None, "dual": None, "gap": None, "bound": None}
    return {
        "accepted": found.is_accepted,
        "primal": finite(found.primal),
        "dual": finite(found.dual),
        "gap": finite(found.gap),
        "bound": finite(found.bound),
    }


def _ac_check(plan: DayPlan) -> Summary:
    found = plan.ac_check
    if found is None:
        nothing = dict.fromkeys(("vm_min_pu", "vm_max_pu", "loading_max"))
        return {"passed": False, **nothing, "findings": []}
    return {
        "passed": found.passed,
        "vm_min_pu": found.vm_min_pu,
        "vm_max_pu": found.vm_max_pu,
        "loading_max": found.loading_max,
        "mismatch_pu": found.mismatch_pu,
        "findings": [str(finding) for finding in found.findings],
    }


def _no_settlement() -> Summary:
    return {"sum": None, "individually_rational": None, "sites": []}


def _settlement(plan: DayPlan) -> Summary:
    found = plan.settlement
    if found is None:
        return _no_settlement()
    return {
        "sum": found.total / MICRO,
        "individually_rational": found.is_rational,
        "rent": found.rent / MICRO,
        "rent_expected": found.rent_expected / MICRO,
        "sites": [
            {
                "site": account.site,
                "payment": account.payment / MICRO,
                "cost": account.cost / MICRO,
                "cost_alone": account.cost_alone / MICRO,
            }
            for account in found.accounts
        ],
    }


def obstacle_summary(found: Obstacle) -> Summary:
    """Return one entry of ``infeasible`` in ``run --json`` and ``attack --json``."""
    known = {
        "limit": found.limit,
        "bus": found.bus,
        "interval": found.interval,
        "short_by": found.short_by,
        "unit": found.unit,
    }
    if found.limit_pu is None:
        return known
    return {**known, "limit_pu": found.limit_pu, "reached_pu": found.reached_pu}


def obstacle_lines(found: Sequence[Obstacle], most: int = 6) -> list[str]:
    """Explain an infeasible day to a person, worst first."""
    if not found:
        return []
    return [
        f"{len(found)} limits cannot be met together; the worst:",
        *(str(one) for one in found[:most]),
        "relax these limits, or add flexibility below these buses",
    ]


def record_of(plan: DayPlan, scenario: Scenario, summary: Summary) -> RunRecord:
    """Return everything that a run folder holds."""
    day = plan.day
    before = ac_flow(day.network.tree, *day.demands(day.uncontrolled))
    after, loading = None, None
    if plan.outcome.setpoints:
        state = ac_flow(day.network.tree, *day.demands(plan.outcome.setpoints))
        after, loading = _known(state.magnitude), state.loading
    tables = tables_of(
        scenario,
        day,
        plan.outcome,
        voltage_pu=after,
        setpoints_uncontrolled=day.uncontrolled,
        voltage_uncontrolled_pu=_known(before.magnitude),
        loading=loading,
        settlement=summary["settlement"]["sites"],
    )
    return RunRecord(summary=summary, scenario=scenario, tables=tables)


def _known(values: Floats) -> Floats:
    return np.where(np.isfinite(values), values, np.nan)


def is_wanted(plan: DayPlan) -> bool:
    """Whether the run ended as wanted: exit code 0."""
    return plan.outcome.status is RunStatus.CONVERGED and plan.is_as_wanted
