"""A masked day by processes on this machine: four validators, workers, operator, sites [day 7]."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.machine import NodeId
from veilgrid.node.attest.day import Files, software_files
from veilgrid.node.local import Deployment, ProcessSpec
from veilgrid.roles.ledger_day import (
    agreement_of,
    group_arguments,
    operator_arguments,
    validator_arguments,
)
from veilgrid.roles.ledger_message import DayResult, StepEnded
from veilgrid.roles.ledger_seat import Agreement, Patience

_MESSAGES = "veilgrid.roles.ledger_message:MESSAGES"
_RECORDS = "veilgrid.roles.ledger_message:RECORDS"
_FACTORY = "veilgrid.roles.ledger_day:"
_ATTESTED = "veilgrid.node.attest.day:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How many processes of each role."""

    validators: int = 4
    workers: int = 2
    site_processes: int = 3


def specs_of(
    day: Day,
    size: Size,
    patience: Patience | None = None,
    evidence: Files | None = None,
) -> list[ProcessSpec]:
    """Say what each process of a day runs and is told; nobody is told another site's bid.

    ``evidence`` names a software root and a policy: with them, all but the operator show evidence
    of attestation, and validators ask for it.
    """
    limits = Limits.of(day.network)
    agreement = agreement_of(
        day,
        validator_count=size.validators,
        worker_count=size.workers,
        group_count=size.site_processes,
        patience=patience,
    )
    agreement = msgspec.structs.replace(agreement, is_attested=evidence is not None)

    def is_asked(role: str) -> bool:
        return evidence is not None and role != "operator"

    def told_to(role: str, arguments: object) -> object:
        return evidence.told(arguments) if evidence and is_asked(role) else arguments

    def spec(name: str, role: str, factory: str, arguments: object, count: int = 1) -> ProcessSpec:
        return ProcessSpec(
            node=NodeId(name),
            role=role,
            factory=(_ATTESTED if is_asked(role) else _FACTORY) + factory,
            messages=_MESSAGES,
            records=_RECORDS,
            arguments=told_to(role, arguments),
            outcome_count=count,
        )

    public = validator_arguments(day, limits, agreement)
    told = operator_arguments(day, limits, agreement)
    groups = dict.fromkeys(agreement.groups.values())
    return [
        spec(agreement.operator, "operator", "build_operator", told),
        *(spec(n, "validator", "build_validator", public) for n in agreement.validators),
        *(spec(n, "worker", "build_worker", agreement) for n in agreement.workers),
        *(
            spec(n, "site", "build_group", group_arguments(day, limits, agreement, n))
            for n in groups
        ),
    ]


def result_told(result: DayResult) -> dict[str, Any]:
    """Write how a day ended, as JSON has it."""
    return {
        "status": result.status,
        "cost": result.cost,
        "iterations": result.iterations,
        "steps": result.steps,
        "excluded": list(result.excluded),
        "replaced_workers": list(result.dropped_workers),
        "ac_check": {
            "passed": result.is_ac_passed,
            "vm_min_pu": result.vm_min_pu,
            "vm_max_pu": result.vm_max_pu,
            "loading_max": result.loading_max,
        },
        "payments": {bus: amount / 1e6 for bus, amount in result.payments},
    }


class DayDeployment:
    """A day by processes: started, watched, ended."""

    def __init__(self, deployment: Deployment, agreement: Agreement) -> None:
        self.deployment, self.agreement = deployment, agreement
        self._shown = 0

    @property
    def processes(self) -> list[dict[str, object]]:
        """What runs: name, role, process id."""
        roles = {self.agreement.operator: "operator"}
        roles |= dict.fromkeys(self.agreement.validators, "validator")
        roles |= dict.fromkeys(self.agreement.workers, "worker")
        roles |= dict.fromkeys(self.agreement.groups.values(), "site")
        return [
            {"node": name, "role": role, "pid": self.deployment.pid(NodeId(name))}
            for name, role in roles.items()
        ]

    def is_running(self, name: str) -> bool:
        """Return whether a process still runs."""
        return self.deployment.is_running(NodeId(name))

    @property
    def steps(self) -> list[StepEnded]:
        """Steps that the operator has seen approved."""
        return [o for o in self._outcomes() if isinstance(o, StepEnded)]

    @property
    def result(self) -> DayResult | None:
        """How the day ended, None before."""
        ended = [o for o in self._outcomes() if isinstance(o, DayResult)]
        return ended[-1] if ended else None

    def _outcomes(self) -> list[DayResult | StepEnded]:
        found: list[DayResult | StepEnded] = self.deployment.outcomes(
            NodeId(self.agreement.operator), DayResult | StepEnded
        )
        return found

    @property
    def seconds(self) -> float:
        """From the start of the operator's machine to its last outcome; starting is not in it."""
        return self.deployment.seconds(NodeId(self.agreement.operator))

    def wait(self, timeout_s: float, watch: Callable[[StepEnded], None] | None = None) -> bool:
        """Wait for the end of the day; False if time ran out or the operator has gone."""

        def is_over() -> bool:
            steps = self.steps
            for step in steps[self._shown :]:
                if watch is not None:
                    watch(step)
            self._shown = len(steps)
            is_gone = not self.deployment.is_running(NodeId(self.agreement.operator))
            return self.result is not None or is_gone

        return self.deployment.wait_until(is_over, timeout_s) and self.result is not None

    def wait_for_step(self, step: int, timeout_s: float) -> bool:
        """Wait until a step was approved."""
        return self.deployment.wait_until(
            lambda: any(one.step >= step for one in self.steps), timeout_s
        )


@contextmanager
def deployed(
    day: Day,
    size: Size,
    *,
    folder: Path | None = None,
    patience: Patience | None = None,
    start_timeout_s: float = 120.0,
) -> Iterator[DayDeployment]:
    """Start a day by processes; leaving ends every process that was started, by its pid.

    Evidence is made by software with a root made for the occasion: it is not hardware.
    """
    agreement = agreement_of(
        day,
        validator_count=size.validators,
        worker_count=size.workers,
        group_count=size.site_processes,
        patience=patience,
    )
    with tempfile.TemporaryDirectory(prefix="veilgrid-evidence-") as held:
        specs = specs_of(day, size, patience, software_files(Path(held)))
        with Deployment(specs, folder=folder) as deployment:
            deployment.start(start_timeout_s)
            yield DayDeployment(deployment, agreement)
