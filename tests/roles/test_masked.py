"""A masked day ends at the optimum, with the iterates of a plain one, and no worker is believed."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from scipy import sparse
from threadpoolctl import threadpool_limits

from veilgrid.admm.certify import certify, turnover
from veilgrid.admm.exchange import ExchangeSettings, Metric
from veilgrid.admm.masked_site import site_form
from veilgrid.admm.outcome import RunStatus
from veilgrid.admm.reference import central
from veilgrid.errors import RunAborted
from veilgrid.grid.lindistflow import Limits
from veilgrid.grid.scenario import Scenario
from veilgrid.qp.dense import DenseSolution, DenseSolver, quantised
from veilgrid.qp.leak import slacks
from veilgrid.qp.mask import EVERY_OPTION, MaskOptions
from veilgrid.qp.problem import QuadraticProgram
from veilgrid.qp.solve import SolveSettings, solve
from veilgrid.report.folders import open_scenario
from veilgrid.roles.masked import MaskedRun, MaskedSettings, plan_masked
from veilgrid.roles.masked_ledger import LedgerRun, plan_refusal, signed_plan
from veilgrid.roles.masked_record import Misconduct, Watched
from veilgrid.roles.masked_task import (
    CLAIM_DOMAIN,
    Council,
    Refusal,
    Submission,
    Task,
    Verdict,
    Worker,
    assign,
    claimed,
    refusal,
    replace_signature,
    with_linear,
)
from veilgrid.secret import Secret, SeededRandomness
from veilgrid.signature import Signer

YINGKOU = Path(__file__).parents[3] / "shared" / "scenarios"
SIX = open_scenario("six-bus")
EXCHANGE = ExchangeSettings()


def yingkou(day: str) -> Scenario:
    folder = YINGKOU / f"yingkou-2023-11-{day}"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here: its publisher gave no licence to ship it")
    return Scenario.read(folder)


def watched_run(scenario: Scenario, settings: MaskedSettings | None = None, **more):
    """Run a masked day and keep each iteration."""
    day, limits = scenario.day(), Limits.of(scenario.network)
    kept: list[Watched] = []
    outcome = plan_masked(
        day, limits, SeededRandomness(7), settings or MaskedSettings(), watch=kept.append, **more
    )
    return day, limits, outcome, kept


def gap_to_central(day, limits, outcome) -> float:
    optimum = day.cost(central(day, limits).setpoints)
    return (day.cost(outcome.coordination.setpoints) - optimum) / turnover(day, optimum)


@pytest.mark.parametrize(
    "options", [MaskOptions(), EVERY_OPTION, MaskOptions(is_fresh_each_iteration=True)]
)
def test_a_masked_day_ends_at_the_optimum_whatever_the_options(options: MaskOptions) -> None:
    day, limits, outcome, _ = watched_run(SIX, MaskedSettings(options=options))
    plan = outcome.coordination
    assert plan.status is RunStatus.CONVERGED
    assert abs(gap_to_central(day, limits, outcome)) <= 2e-4
    assert outcome.refused == outcome.excluded == outcome.named == ()
    found = certify(day, limits, plan.setpoints, plan.price_p, plan.price_q).certificate
    assert found.is_accepted, found
    assert plan.iteration_count <= 150


def plain_solution(program: QuadraticProgram, linear):
    return solve(replace(program, linear=linear), "clarabel", SolveSettings(tolerance=1e-12)).x


def refined(program: QuadraticProgram, linear, magnified: float = 1e3):
    """Solve, then solve for what is missing under a magnifying glass: digits beyond 1e-6."""
    program = replace(program, linear=linear)
    x = plain_solution(program, linear)
    at = program.matrix @ x
    missing = replace(
        program,
        linear=magnified * (linear + program.quadratic @ x),
        lower=magnified * (program.lower - at),
        upper=magnified * (program.upper - at),
    )
    return x + solve(missing, "clarabel", SolveSettings(tolerance=1e-12)).x / magnified


def plain_answers(day, limits, kept: list[Watched], settings: ExchangeSettings):
    """Solve the same subproblems unmasked, by another back-end, as exactly as it can.

    Yields kind, masked demand, plain demand, and what both solutions cost.
    """
    metric = Metric.of(day, limits, settings.penalty, settings.evenness)
    for place, index in enumerate(day.flexible):
        made = {}
        for entry in kept:
            offer = entry.offer
            scale = float(offer.stiffness[0])
            key = (entry.kind, scale)
            if key not in made:
                form = site_form(
                    day.sites[index],
                    scale * float(metric.active[place]),
                    scale * float(metric.reactive[place]),
                )
                plain = form.problem
                if entry.kind == "cheapest":
                    plain = replace(plain, quadratic=form.cheapest)
                program = QuadraticProgram(
                    quadratic=sparse.csc_matrix(plain.quadratic),
                    linear=plain.linear,
                    matrix=sparse.csc_matrix(sparse.vstack([plain.equal, plain.matrix])),
                    lower=np.concatenate([plain.equal_to, np.full(len(plain.bound), -np.inf)]),
                    upper=np.concatenate([plain.equal_to, plain.bound]),
                )
                made[key] = form, plain, program
            form, plain, program = made[key]
            near = entry.kind == "near"
            linear = form.linear(
                offer.price_p[place] if near else day.buy,
                offer.price_q[place] if near else np.zeros_like(day.buy),
                offer.target_p[place],
                offer.target_q[place],
                is_cheapest=not near,
            )
            x = refined(program, linear) if near else plain_solution(program, linear)
            own = replace(plain, linear=linear)
            costs = own.objective(entry.solutions[place]), own.objective(x)
            yield entry.kind, entry.demand_p[place], x[form.active], costs


def assert_as_plain(
    day, limits, kept: list[Watched], settings: ExchangeSettings = EXCHANGE
) -> None:
    """Near a target the answer is one; the cheapest answer to a price may be one of many."""
    for kind, masked, plain, (cost, least) in plain_answers(day, limits, kept, settings):
        assert cost == pytest.approx(least, rel=1e-6, abs=1e-6)
        if kind == "near":
            assert masked == pytest.approx(plain, abs=1e-6)


def test_masked_iterates_are_those_of_plain_subproblems() -> None:
    """If they drifted apart, masking would cost more than the optimum: six-bus binds limits."""
    day, limits, _, kept = watched_run(SIX)
    assert len(kept) > 10
    assert {entry.kind for entry in kept} == {"cheapest", "near"}
    assert_as_plain(day, limits, kept)


def test_masked_iterates_stay_plain_ones_when_penalties_change() -> None:
    """Only H' and c' are new then; a coordinator computes both from what is registered."""
    exchange = ExchangeSettings(penalty=0.05, iteration_count_max=16)
    day, limits = SIX.day(), Limits.of(SIX.network)
    kept: list[Watched] = []
    plan_masked(
        day,
        limits,
        SeededRandomness(7),
        MaskedSettings(exchange=exchange),
        watch=kept.append,
    )
    assert len({float(entry.offer.stiffness[0]) for entry in kept}) > 1
    assert all(np.ptp(entry.offer.stiffness) == 0.0 for entry in kept)
    first, last = kept[1], kept[-1]
    for before, after in zip(first.problems, last.problems, strict=True):
        assert (before.matrix == after.matrix).all()
        assert (before.bound == after.bound).all()
        assert not np.allclose(before.quadratic, after.quadratic)
    assert_as_plain(day, limits, kept, exchange)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["09"])
def test_a_yingkou_day_is_planned_masked_within_its_goals(name: str) -> None:
    """Published: 652 to 959 iterations and about 147 s a day."""
    day, limits, outcome, kept = watched_run(yingkou(name))
    plan = outcome.coordination
    assert plan.status is RunStatus.CONVERGED
    assert plan.iteration_count <= 150
    assert abs(gap_to_central(day, limits, outcome)) <= 2e-4
    assert_as_plain(day, limits, kept[:2])
    with ThreadPoolExecutor(2) as pool, threadpool_limits(1, user_api="blas"):
        run = MaskedRun(day, limits, MaskedSettings(), SeededRandomness(7), pool)
        _, offer = run.open()
        assert_as_plain(day, limits, [run.iterate(offer)])
    for place, _ in enumerate(day.flexible):
        last = kept[-1]
        y = last.records[place].submission.solution.values
        shown = slacks(last.problems[place], y)
        site = day.sites[day.flexible[place]]
        x = last.solutions[place][: len(site.linear)]
        assert shown[: len(x)] == pytest.approx(x - site.lower, abs=1e-9)
        assert shown[len(x) : 2 * len(x)] == pytest.approx(site.upper - x, abs=1e-9)


def test_a_worker_that_cheats_is_barred_and_replaced() -> None:
    """The day ends as if it had never worked; only its claims are lost."""

    def lie(_task, _problem, submission: Submission) -> Submission:
        moved = DenseSolution(
            y=submission.solution.y + 10**6, multipliers=submission.solution.multipliers
        )
        return Submission(submission.claim, moved)

    day, limits, outcome, _ = watched_run(SIX, misconduct=Misconduct(workers={"worker-0": lie}))
    assert {worker for _, worker, _ in outcome.refused} == {"worker-0"}
    assert outcome.coordination.status is RunStatus.CONVERGED
    assert abs(gap_to_central(day, limits, outcome)) <= 2e-4
    with pytest.raises(RunAborted, match="no worker"):
        watched_run(SIX, misconduct=Misconduct(workers={"worker-0": lie, "worker-1": lie}))


def test_a_silent_site_is_excluded_and_the_others_go_on() -> None:
    day, limits, outcome, _ = watched_run(SIX, misconduct=Misconduct(refusing={3: 3}))
    plan = outcome.coordination
    assert plan.status is RunStatus.CONVERGED
    assert outcome.excluded == (3,)
    assert plan.setpoints[3] == pytest.approx(day.sites[3].uncontrolled)
    assert limits.excess(day.flows(plan.setpoints)).max() <= 1e-6
    assert gap_to_central(day, limits, outcome) > 1e-3  # its devices are missed


def test_a_falsified_linear_cost_is_named_and_not_used() -> None:
    """Bids are registered: what an owner sends later has to follow from them and the offer."""

    def falsify(_edge, offer):
        return offer._replace(target_p=offer.target_p + 1e-3)

    day, limits, outcome, _ = watched_run(SIX, misconduct=Misconduct(falsifying={3: falsify}))
    assert outcome.named == (str(day.sites[3].name),)
    assert abs(gap_to_central(day, limits, outcome)) <= 2e-4


def test_traffic_grows_with_each_iteration_and_says_what_is_sent() -> None:
    _, _, outcome, kept = watched_run(SIX)
    plan = outcome.coordination
    problems = sum(8 * (p.quadratic.size + p.matrix.size) for p in kept[0].problems)
    assert plan.byte_count > 5 * problems  # the store, a worker and four validators read them
    assert plan.message_count > 20 * len(kept)


class Court:
    """One honest task with its solution, and everything that a dishonest worker could hand in."""

    def __init__(self) -> None:
        _, _, _, self.kept = watched_run(SIX)
        self.honest = Worker("worker-0", Signer(Secret(b"\x01" * 32)))
        self.thief = Worker("worker-1", Signer(Secret(b"\x02" * 32)))
        last = self.kept[-1]
        self.problems = last.problems
        self.tasks = [
            assign(problem, f"site-{k}", len(self.kept), "near", "worker-0")
            for k, problem in enumerate(self.problems)
        ]
        self.right = [
            self.honest.solve(task, problem)
            for task, problem in zip(self.tasks, self.problems, strict=True)
        ]

    def judged(self, place: int, submission: Submission) -> Refusal | None:
        key = self.honest.signer.verify_key
        return refusal(self.tasks[place], self.problems[place], submission, key)

    def signed(self, place: int, y, force) -> Submission:
        solution = quantised(y, force, "")
        return claimed(self.tasks[place], solution, "worker-0", self.honest.signer)


@pytest.fixture(scope="module")
def court() -> Court:
    return Court()


def test_honest_claims_are_accepted(court: Court) -> None:
    for place, submission in enumerate(court.right):
        assert court.judged(place, submission) is None


def wrong_claim(court: Court, draw: np.random.Generator, kind: str, place: int) -> Submission:
    """Draw one wrong submission of a kind."""
    problem, right = court.problems[place], court.right[place]
    y, force = right.solution.values, right.solution.multipliers * 1e-9
    if kind == "infeasible":
        row = int(draw.integers(len(problem.bound)))
        normal = problem.matrix[row] / (problem.matrix[row] @ problem.matrix[row])
        over = slacks(problem, y)[row] + 10.0 ** draw.uniform(-4, 0) * np.linalg.norm(
            problem.matrix[row]
        )
        return court.signed(place, y + normal * over, force)
    if kind == "suboptimal":
        inner = court.kept[int(draw.integers(3))].records[place].submission.solution.values
        share = draw.uniform(0.05, 1.0)
        return court.signed(place, (1.0 - share) * y + share * inner, force)
    if kind == "stale":
        then = court.kept[int(draw.integers(3))]
        old = then.records[place].submission
        if draw.uniform() < 0.5:
            task = assign(then.problems[place], f"site-{place}", then.iteration, "near", "worker-0")
            return claimed(task, old.solution, "worker-0", court.honest.signer)
        return court.signed(place, old.solution.values, old.solution.multipliers * 1e-9)
    if kind == "unsigned":
        flipped = bytearray(right.claim.signature)
        flipped[int(draw.integers(64))] ^= 1 << int(draw.integers(8))
        signature = bytes(flipped) if draw.uniform() < 0.8 else b""
        return Submission(replace_signature(right.claim, signature), right.solution)
    if kind == "of another worker":
        if draw.uniform() < 0.5:
            return claimed(court.tasks[place], right.solution, "worker-1", court.thief.signer)
        claim = msgspec.structs.replace(right.claim, signature=b"")
        forged = court.thief.signer.sign(CLAIM_DOMAIN, claim.signed)
        return Submission(replace_signature(claim, forged), right.solution)
    other = (place + 1 + int(draw.integers(len(court.right) - 1))) % len(court.right)
    stolen = court.right[other].solution
    if draw.uniform() < 0.5:
        return court.right[other]
    return claimed(court.tasks[place], stolen, "worker-0", court.honest.signer)


KINDS = ("infeasible", "suboptimal", "stale", "unsigned", "of another worker", "of another site")


def test_ten_thousand_wrong_solutions_are_refused(court: Court) -> None:
    """One that passed would be recorded, and a site would follow it."""
    draw = np.random.default_rng(20231106)
    reasons: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for number in range(10_000):
        kind = KINDS[number % len(KINDS)]
        place = int(draw.integers(len(court.right)))
        found = court.judged(place, wrong_claim(court, draw, kind, place))
        assert found is not None, f"seed=20231106 {number=} {kind=} {place=}"
        reasons[kind].add(found.name)
    assert reasons["unsigned"] == {"UNSIGNED"}
    assert reasons["of another worker"] == {"OTHER_WORKER", "UNSIGNED"}
    assert "INFEASIBLE" in reasons["infeasible"]
    assert "SUBOPTIMAL" in reasons["suboptimal"]
    assert "OTHER_TASK" in reasons["stale"]
    assert reasons["of another site"] & {"OTHER_TASK", "MALFORMED"}


def test_a_swapped_solution_behind_an_honest_claim_is_refused(court: Court) -> None:
    good = court.right[0]
    other = DenseSolution(y=good.solution.y + 1, multipliers=good.solution.multipliers)
    assert court.judged(0, Submission(good.claim, other)) is Refusal.OTHER_SOLUTION


def test_a_problem_other_than_the_assigned_one_is_refused(court: Court) -> None:
    """Data are bound by digest: a validator must not judge against what somebody slipped in."""
    problem = court.problems[0]
    easier = with_linear(problem, problem.linear * 0.5)
    solution = DenseSolver(easier).solve(easier.linear)
    submission = claimed(court.tasks[0], solution, "worker-0", court.honest.signer)
    found = refusal(court.tasks[0], easier, submission, court.honest.signer.verify_key)
    assert found is Refusal.OTHER_TASK


def verdict(name: str, *, is_accepted: bool) -> Verdict:
    return Verdict(task=b"t", solution=b"s", validator=name, is_accepted=is_accepted, reason="")


def test_only_a_quorum_of_different_validators_settles_a_claim() -> None:
    council = Council(fault_max=1)
    yes = [verdict(name, is_accepted=True) for name in council.names]
    no = [verdict(name, is_accepted=False) for name in council.names]
    assert council.outcome(yes[:3]) is True
    assert council.outcome(no[:3]) is False
    assert council.outcome(yes[:2]) is None
    assert council.outcome([yes[0]] * 5) is None
    assert council.outcome([yes[0], yes[1], no[2], no[3]]) is None
    assert council.outcome([*yes[:2], verdict("stranger", is_accepted=True)]) is None
    assert Council(fault_max=2).quorum == 5


def test_a_plan_on_the_plain_ledger_has_to_pass_its_certificate() -> None:
    """Otherwise a colluding worker would record the plan that it likes."""
    day, limits = SIX.day(), Limits.of(SIX.network)
    best = central(day, limits)
    signer = Signer(Secret(b"\x05" * 32))
    key = signer.verify_key
    plan = signed_plan(day, best, "worker-0", signer)
    assert plan_refusal(day, limits, plan, "worker-0", key) == ""
    assert "assigned" in plan_refusal(day, limits, plan, "worker-1", key)
    unsigned = msgspec.structs.replace(plan, signature=bytes(64))
    assert "signature" in plan_refusal(day, limits, unsigned, "worker-0", key)
    other = replace(
        day, sites=(replace(day.sites[0], load_p=day.sites[0].load_p + 1e-6), *day.sites[1:])
    )
    assert "other bids" in plan_refusal(other, limits, plan, "worker-0", key)
    worse = replace(best, setpoints=list(day.uncontrolled))
    lazy = signed_plan(day, worse, "worker-0", signer)
    assert "gap" in plan_refusal(day, limits, lazy, "worker-0", key)
    short = signed_plan(day, replace(best, setpoints=best.setpoints[:-1]), "worker-0", signer)
    assert "shape" in plan_refusal(day, limits, short, "worker-0", key)


def test_a_worker_in_league_is_replaced_on_the_plain_ledger() -> None:
    day, limits = SIX.day(), Limits.of(SIX.network)
    lazy = replace(central(day, limits), setpoints=list(day.uncontrolled))
    run = LedgerRun(randomness=SeededRandomness(1), solvers={"worker-0": lambda *_: lazy})
    plan = run.run(day, limits)
    assert [worker for worker, _ in run.refused] == ["worker-0"]
    assert day.cost(plan.setpoints) == pytest.approx(day.cost(central(day, limits).setpoints))
    both = LedgerRun(
        randomness=SeededRandomness(1),
        solvers={"worker-0": lambda *_: lazy, "worker-1": lambda *_: lazy},
    )
    with pytest.raises(RunAborted, match="no worker"):
        both.run(day, limits)


def test_tasks_of_different_iterations_have_different_digests(court: Court) -> None:
    tasks = {task.digest for task in court.tasks}
    assert len(tasks) == len(court.tasks)
    first: Task = court.tasks[0]
    later = msgspec.structs.replace(first, iteration=first.iteration + 1)
    assert later.digest not in tasks
    assert len(first.digest) == hashlib.sha256().digest_size
