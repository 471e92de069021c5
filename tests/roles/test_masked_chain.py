"""A planned day on its ledger: drawn workers, counted votes, payments, and an export to check."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from roles.test_masked import SIX
from roles.test_masked_neighbour import SHORT, lie
from veilgrid.admm._neighbour_sweep import NeighbourSettings
from veilgrid.admm.outcome import Progress, RunStatus
from veilgrid.admm.reference import central
from veilgrid.admm.site_step import SiteAnswer
from veilgrid.errors import RunAborted
from veilgrid.grid.lindistflow import Limits
from veilgrid.ledger.export import ExportFile, check_export
from veilgrid.ledger.operation import (
    Absent,
    Approve,
    Operation,
    ProposeIteration,
    ProposeSettlement,
    Result,
    Settled,
    Solve,
    Verdict,
)
from veilgrid.ledger.service import SYSTEM, Record
from veilgrid.roles.masked import MaskedSettings, plan_masked
from veilgrid.roles.masked_chain import Chain, client_of
from veilgrid.roles.masked_ledger import Iterates, LedgerRun, plain_chain
from veilgrid.roles.masked_neighbour import MaskedNeighbourSettings, plan_masked_neighbour
from veilgrid.roles.masked_record import HONEST, Misconduct
from veilgrid.roles.masked_task import Council
from veilgrid.roles.operator import plan_day
from veilgrid.secret import SeededRandomness

RECORDED = MaskedSettings(is_recorded=True)


def entries(export: bytes) -> list[tuple[str, Operation, Result]]:
    """Read client, operation and result of each record of the day."""
    file = msgspec.json.decode(export, type=ExportFile)
    found = []
    for text in file.records or []:
        record = msgspec.msgpack.decode(bytes.fromhex(text), type=Record)
        if not record.operation.startswith(SYSTEM):
            operation = msgspec.msgpack.decode(record.operation, type=Operation)
            result = msgspec.msgpack.decode(record.result, type=Result)
            found.append((record.client, operation, result))
    return found


def recorded(misconduct=HONEST):
    day, limits = SIX.day(), Limits.of(SIX.network)
    found = plan_masked(day, limits, SeededRandomness(7), RECORDED, misconduct=misconduct)
    assert isinstance(found.coordination.record, Chain)
    return day, found, entries(found.coordination.record.export())


@pytest.fixture(scope="module")
def planned():
    return plan_day(SIX.day(), "masked", randomness=SeededRandomness(3))


def test_an_outsider_checks_the_day_from_its_export(planned) -> None:
    assert check_export(planned.ledger, "ledger.json").problems == ()
    file = msgspec.json.decode(planned.ledger, type=ExportFile)
    swapped = msgspec.structs.replace(file, records=[*file.records[:-2], *file.records[:-3:-1]])
    assert check_export(msgspec.json.encode(swapped), "ledger.json").problems


def test_payments_on_the_ledger_are_those_of_the_settlement(planned) -> None:
    said = [op for _, op, _ in entries(planned.ledger) if isinstance(op, ProposeSettlement)]
    paid = dict(said[0].payments)
    assert len(said) == 1
    assert sum(paid.values()) == 0
    for account in planned.settlement.accounts:
        assert paid[client_of(account.site)] == account.payment


@pytest.fixture(scope="module")
def honest():
    return recorded()


def test_recording_does_not_change_the_plan(honest) -> None:
    day, limits = SIX.day(), Limits.of(SIX.network)
    plain = plan_masked(day, limits, SeededRandomness(7)).coordination
    _, found, _ = honest
    assert found.coordination.status is RunStatus.CONVERGED
    assert day.cost(found.coordination.setpoints) == pytest.approx(
        day.cost(plain.setpoints), rel=2e-4
    )


def test_each_solution_is_by_the_drawn_worker_and_carries_a_quorum(honest) -> None:
    day, found, told = honest
    solves = [op for _, op, _ in told if isinstance(op, Solve)]
    accepted = [r for _, op, r in told if isinstance(op, Verdict) and isinstance(r, Settled)]
    votes = [op for _, op, _ in told if isinstance(op, Verdict)]
    assert len(solves) == len(accepted) > found.coordination.iteration_count * len(day.flexible)
    assert all(result.is_accepted for result in accepted)
    assert len(votes) == 3 * len(solves)
    steps = [op for _, op, _ in told if isinstance(op, ProposeIteration)]
    assert [op.iteration for op in steps] == list(range(1, len(steps) + 1))
    assert [op.is_last for op in steps] == [False] * (len(steps) - 1) + [True]
    assert {op.primal_residual for op in steps} != {0}


def test_a_cheating_worker_is_replaced_by_the_ledger() -> None:
    _, found, told = recorded(Misconduct(workers={"worker-0": lie}))
    assert {worker for _, worker, _ in found.refused} == {"worker-0"}
    ends = [r for _, op, r in told if isinstance(op, Verdict) and isinstance(r, Settled)]
    wrong = [result for result in ends if not result.is_accepted]
    assert wrong
    assert {result.subject for result in wrong} == {"worker-0"}
    assert all(result.workers == ("worker-1",) for result in wrong)
    assert found.coordination.status is RunStatus.CONVERGED
    with pytest.raises(RunAborted, match="no worker"):
        recorded(Misconduct(workers={"worker-0": lie, "worker-1": lie}))


def test_a_silent_site_is_recorded_as_absent() -> None:
    day, found, told = recorded(Misconduct(refusing={3: 3}))
    assert found.excluded == (3,)
    absent = [op for _, op, _ in told if isinstance(op, Absent)]
    assert {op.who for op in absent} == {client_of(str(day.sites[3].name))}


@pytest.mark.parametrize("coordination", [NeighbourSettings(), SHORT], ids=["sweep", "published"])
def test_days_among_neighbours_are_recorded_too(coordination) -> None:
    day, limits = SIX.day(), Limits.of(SIX.network)
    settings = MaskedNeighbourSettings(coordination=coordination, is_recorded=True)
    misconduct = Misconduct(refusing={3: 3})
    found = plan_masked_neighbour(day, limits, SeededRandomness(1), settings, misconduct=misconduct)
    chain = found.coordination.record
    chain.settle({str(site.name): 0 for site in day.sites})
    assert check_export(chain.export(), "ledger.json").problems == ()


def test_a_refused_plan_of_the_plain_ledger_is_on_record() -> None:
    day, limits = SIX.day(), Limits.of(SIX.network)
    lazy = replace(central(day, limits), setpoints=list(day.uncontrolled))
    run = LedgerRun(
        randomness=SeededRandomness(1), solvers={"worker-0": lambda *_: lazy}, is_recorded=True
    )
    told = entries(run.run(day, limits).record.export())
    votes = [op.is_accepted for _, op, _ in told if isinstance(op, Approve)]
    assert votes == [False] * 3 + [True] * 3


def test_every_iterate_of_neighbours_is_on_record() -> None:
    found = plan_day(SIX.day(), "neighbour-ledger", randomness=SeededRandomness(1))
    steps = [op for _, op, _ in entries(found.ledger) if isinstance(op, ProposeIteration)]
    assert len(steps) == found.outcome.iteration_count
    assert len({op.digest for op in steps}) == len(steps)
    assert steps[-1].is_last
    assert steps[-1].primal_residual == int(found.outcome.history[-1].primal * 1e9)


def test_an_iterate_that_misses_its_bid_is_refused() -> None:
    """The manipulation that plain neighbours believe."""
    day, limits = SIX.day(), Limits.of(SIX.network)
    chain = plain_chain(day, Council(), SeededRandomness(1))
    with ThreadPoolExecutor(1) as pool:
        iterates = Iterates(day, limits, chain, pool)
    own = [day.sites[i] for i in day.flexible]
    x = [site.uncontrolled for site in own]
    said = SiteAnswer(
        x,
        np.array([site.demand_p(each) for site, each in zip(own, x, strict=True)]),
        np.array([site.demand_q(each) for site, each in zip(own, x, strict=True)]),
    )
    iterates.take(said)
    iterates.note(Progress(1, 0.1, 0.1, 0.0))
    iterates.close(is_last=False)
    less = said.demand_p.copy()
    less[0] -= 1e-3
    iterates.take(said._replace(demand_p=less))
    iterates.note(Progress(2, 0.1, 0.1, 0.0))
    with pytest.raises(RunAborted) as caught:
        iterates.close(is_last=False)
    assert caught.value.culprit == str(own[0].name)


def test_what_the_ledger_refuses_ends_the_day() -> None:
    day = SIX.day()
    chain = plain_chain(day, Council(), SeededRandomness(1))
    with pytest.raises(RunAborted, match="refused"):
        chain.settle({str(site.name): 0 for site in day.sites})  # before the last step
