"""veilgrid: plan and settle distributed energy resources together without handing over data.

The names below are the public Python interface, described in docs/api.md; everything else may
change without notice. They are loaded when they are first used, so that importing veilgrid costs
nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from veilgrid.admm.outcome import RunStatus
    from veilgrid.errors import Finding, InputError, ScenarioError, VeilgridError
    from veilgrid.grid.lindistflow import Limits
    from veilgrid.grid.scenario import Scenario
    from veilgrid.report.folders import bundled_scenarios, open_scenario, save_scenario
    from veilgrid.roles.operator import DayPlan, plan_day

__all__ = [
    "DayPlan",
    "Finding",
    "InputError",
    "Limits",
    "RunStatus",
    "Scenario",
    "ScenarioError",
    "VeilgridError",
    "bundled_scenarios",
    "open_scenario",
    "plan_day",
    "save_scenario",
]

_HOMES = {
    "DayPlan": "veilgrid.roles.operator",
    "Finding": "veilgrid.errors",
    "InputError": "veilgrid.errors",
    "Limits": "veilgrid.grid.lindistflow",
    "RunStatus": "veilgrid.admm.outcome",
    "Scenario": "veilgrid.grid.scenario",
    "ScenarioError": "veilgrid.errors",
    "VeilgridError": "veilgrid.errors",
    "bundled_scenarios": "veilgrid.report.folders",
    "open_scenario": "veilgrid.report.folders",
    "plan_day": "veilgrid.roles.operator",
    "save_scenario": "veilgrid.report.folders",
}


def __getattr__(name: str) -> object:
    """Load a public name from where it lives."""
    if name not in _HOMES:
        raise AttributeError(f"module 'veilgrid' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
