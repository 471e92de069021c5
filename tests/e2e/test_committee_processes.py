"""A committee of real processes: one tampers, one falls silent, one is killed with -9."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from veilgrid.cli._committee import (
    CONVENER,
    PROCESSES,
    Committee,
    SecureResult,
    Task,
    Timing,
    _result,
    round_specs,
    secure_round,
)
from veilgrid.errors import InputError
from veilgrid.machine import NodeId
from veilgrid.mpc.aggregate import Question, program_of
from veilgrid.mpc.form import number, number_bits
from veilgrid.node.local import Deployment, ProcessSpec
from veilgrid.roles.convener import Report
from veilgrid.roles.rounds import Outcome
from veilgrid.sim import canary_forms

HERE = Path(__file__).parent
PATHS = [HERE, HERE.parent / "simulation"]
SECRETS = {"ada": 771_234_567, "bob": 772_345_678, "eve": 773_456_789}
TIMING = Timing(patience_ns=2_000_000_000, patience_count=1)
P2 = NodeId("party-2")

Deed = Callable[[Deployment], None]


def specs_of(n: int, degree: int) -> list[ProcessSpec]:
    forms = {name: number(0, 2**30) for name in SECRETS}
    inputs = {name: number_bits(forms[name], value) for name, value in SECRETS.items()}
    committee = Committee.fresh(n, degree, b"e2e", None)
    return round_specs(committee, forms, inputs, Task(program_of, Question("sum")), TIMING)


def played(
    n: int, degree: int, factory: str = "", deed: Deed = lambda _: None, folder: Path | None = None
) -> tuple[SecureResult, Report]:
    """Run a round whose second party deviates, or to which something is done."""
    specs = [
        replace(spec, factory=f"committee_liars:{factory}") if factory and spec.node == P2 else spec
        for spec in specs_of(n, degree)
    ]
    with Deployment(specs, import_paths=PATHS, folder=folder) as deployment:
        deployment.start()
        deed(deployment)
        is_in_time = deployment.wait_until(lambda: bool(deployment.outcomes(CONVENER)), 90)
        assert is_in_time, "the convener ends"
        results = deployment.stop(Outcome | Report | str)
    report = next(one for each in results for one in each.outcomes if isinstance(one, Report))
    return _result(results, 0.0, PROCESSES), report


@pytest.mark.parametrize(("factory", "kind"), [("tampering", "cheated"), ("silent", "silent")])
def test_who_deviates_is_named_and_the_next_round_runs_without_it(
    tmp_path: Path, factory: str, kind: str
) -> None:
    """Over TLS, as in the simulator; and no file of any process holds an input."""
    done, report = played(4, 1, factory, folder=tmp_path / "deployment")
    assert [(one.kind, one.culprits) for one in report.rounds] == [
        (kind, ["party-2"]),
        ("finished", []),
    ]
    assert report.rounds[1].members == ["party-1", "party-3", "party-4"]
    assert done.result["numbers"] == [str(sum(SECRETS.values()))]
    assert done.excluded == ["party-2"]
    forms = [form for value in SECRETS.values() for form in canary_forms(value)]
    files = [path for path in (tmp_path / "deployment").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".journal", ".stderr", ".key", ".pem"}
    for path in files:
        octets = path.read_bytes()
        assert not any(form in octets for form in forms), path.name


def test_a_killed_party_is_named_and_the_next_round_runs_without_it() -> None:
    done, report = played(4, 1, deed=lambda deployment: deployment.kill(P2))
    assert [(one.kind, one.culprits) for one in report.rounds] == [
        ("silent", ["party-2"]),
        ("finished", []),
    ]
    assert done.result["numbers"] == [str(sum(SECRETS.values()))]


def test_a_killed_party_that_is_started_again_is_back_for_the_next_round() -> None:
    """Three cannot go on without it; from its journal it knows which round it may not answer."""

    def kill_and_restart(deployment: Deployment) -> None:
        deployment.wait_until(lambda: bool(deployment.outcomes(CONVENER)), 1.5)
        deployment.kill(P2)
        deployment.restart(P2)

    done, report = played(3, 1, "stalling", kill_and_restart)
    first, *others = report.rounds
    assert (first.kind, first.culprits) == ("silent", ["party-2"])
    assert others[-1].kind == "finished"
    assert others[-1].members == ["party-1", "party-2", "party-3"]
    assert done.result["numbers"] == [str(sum(SECRETS.values()))]


def test_a_round_of_processes_gives_what_one_process_gives() -> None:
    forms = {name: number(0, 2**30) for name in SECRETS}
    inputs = {name: number_bits(forms[name], value) for name, value in SECRETS.items()}
    task = Task(program_of, Question("variance"))
    apart, together = (
        secure_round(Committee.fresh(3, 1, b"e2e", None), forms, inputs, task, processes=processes)
        for processes in (True, False)
    )
    assert apart.result == together.result
    assert (apart.mode, together.mode) == (PROCESSES, "one process")
    assert 0 < apart.octets < 2 * together.octets
    seeded = Committee.fresh(3, 1, b"e2e", 7)
    with pytest.raises(InputError, match="one process only"):
        secure_round(seeded, forms, inputs, task, processes=True)
    assert "committee_liars" not in sys.modules
