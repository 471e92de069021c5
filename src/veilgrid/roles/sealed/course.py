"""The public course of a sealed day: what comes next, from what opened before [sealed 4].

Parties and sites each keep one and get the same, because it depends on opened results alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec
import numpy as np

from veilgrid.admm.accelerate import IntervalBalance
from veilgrid.admm.exchange import Balance, ExchangeSettings, Retry, is_tightened
from veilgrid.admm.network_step import INNER_MAX
from veilgrid.errors import invariant
from veilgrid.roles.sealed.bid import Shape
from veilgrid.roles.sealed.heard import PAYER
from veilgrid.roles.sealed.kinds import (
    ANSWER,
    BIDS,
    CERTIFICATE,
    CHALLENGE,
    DONE,
    PULL,
    REGRET,
    SURPLUS,
    WISH,
    Task,
)
from veilgrid.roles.sealed.mixing import MIX, PLAIN, MixingRule, Mixture
from veilgrid.roles.sealed.narrowing import REFUSALS_MAX, narrowed
from veilgrid.roles.sealed.program import Binding, Tolerances
from veilgrid.roles.sealed.register import Register
from veilgrid.roles.sealed.step_rooms import Looks
from veilgrid.roles.sealed.step_set import AT_LOW, ActiveSet

SUSPICION: Final = (4, 8, 16, 32, 64, 128)
"""Iterations from which a bound far above the cost makes the day suspect of being infeasible."""

SUSPICIOUS_GAP: Final = -0.05
"""Claimed gap, relative to the cost, below which a day is suspect."""

VOLTAGES_INTERVAL: Final = 2
RATINGS_INTERVAL: Final = 12
"""Network steps from one that looks for exceeded rows to the next."""

STALLED_FROM: Final = 120
"""Iteration from which on a day that has not ended is watched [sealed 6.4]."""

ANSWER_INTERVAL: Final = 3
"""Watched iterations from one look at the answers to the next."""

WATCHED_TURNOVERS: Final = 25.0
"""What the plan is taken to cost at most on a watched day, in hundredths of all loads."""

CONVERGED: Final = "converged"
LIMIT: Final = "iteration_limit"
INFEASIBLE: Final = "infeasible"


@dataclass(frozen=True, slots=True)
class Seen:
    """What opened in one iteration: cost and claimed gap, price units, and residual."""

    iteration: int
    cost: float
    gap: float
    residual: float
    passes: int


@dataclass
class Course:
    """Where a day stands.

    Attributes
    ----------
    register
        With the inner distance in force.
    excluded
        Buses that take their fallback, with the reason.
    absent
        Those of them without a bid that counts, and the payer if it sent nothing.
    refused
        Cost, iterations and what opened of plans that the AC power flow refused.
    bindings, registers, wish_tasks
        By step of the network: its active set, the register it ran under, its task.
    """

    register: Register
    settings: ExchangeSettings
    turnover_min: float
    flexible: tuple[int, ...]
    task: Task = field(default_factory=lambda: Task(0, BIDS, 0))
    excluded: dict[int, str] = field(default_factory=dict)
    bindings: dict[int, Binding] = field(default_factory=dict)
    registers: dict[int, Register] = field(default_factory=dict)
    wish_tasks: dict[int, int] = field(default_factory=dict)
    history: list[Seen] = field(default_factory=list)
    mixture: Mixture = field(default_factory=lambda: Mixture(PLAIN))
    status: str = ""
    certificate: dict[str, Any] = field(default_factory=dict)
    bid_task: int = 0
    answer_task: int = -1
    regret_task: int = -1
    absent: set[int] = field(default_factory=set)
    hint: Binding | None = None
    unmet: list[list[float]] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rule = MixingRule(self.settings.memory, self.settings.mixing_interval)
        self._opening = self.register
        self._strength = 0.0
        self._passes = 0
        self._suspected = 0
        self._retry = Retry()
        self._claimed, self._fits = (0.0, 0.0), False
        self.is_watched = False
        self.balance = IntervalBalance(self.register.interval_count)

    @property
    def members(self) -> tuple[int, ...]:
        """Buses whose sites take part in the coordination."""
        return tuple(bus for bus in self.flexible if bus not in self.excluded)

    @property
    def still(self) -> tuple[int, ...]:
        """Buses that take their committed fallback."""
        members = set(self.members)
        return tuple(bus for bus in range(self.register.bus_count) if bus not in members)

    @property
    def binding(self) -> Binding:
        """The active set to start the next network step from."""
        if not self.bindings:
            return Binding.of(ActiveSet.start(self.register))
        return self.hint or self.bindings[max(self.bindings)]

    @property
    def looks(self) -> Looks:
        """Which rows the present network step looks at besides those in play.

        New rows turn up early; plans are checked against all before they are accepted.
        """
        iteration = self.task.iteration
        return Looks(
            voltages=iteration <= 2 or iteration % VOLTAGES_INTERVAL == 1,
            ratings=iteration % RATINGS_INTERVAL == 1,
        )

    @property
    def may_narrow(self) -> bool:
        """Whether a plan that the AC power flow refuses is planned again."""
        return len(self.refused) < REFUSALS_MAX

    @property
    def priced_by(self) -> int:
        """The network step whose prices the present answers are paid at."""
        return max(self.task.iteration - 1, 1)

    @property
    def product_count(self) -> int:
        """Sums of products that the present message carries."""
        if self.task.kind == WISH:
            # The wish that a mixing leads to still comes from the step before it.
            is_after = self.mixture.kind != MIX
            return int(self.rule.is_judged and is_after and self.task.iteration > 1)
        return self.rule.product_count if self.task.iteration > 1 else 0

    @property
    def is_balanced(self) -> bool:
        """Whether the present wishes come with what tells how penalties are to change."""
        is_due = self.task.kind == WISH and self.task.iteration in IntervalBalance.JUDGED
        return is_due and self.settings.balance == Balance.BY_INTERVAL and not self.is_watched

    @property
    def is_moving_counted(self) -> bool:
        """Whether what the present step changes counts for the balance."""
        is_plain = not self.rule.is_striding
        is_late = self.task.iteration > IntervalBalance.STRIDES_FROM
        return (is_plain or is_late) and not self.is_balanced

    def lengths(self, shapes: Sequence[Shape]) -> dict[int, int]:
        """Return how many numbers each bus's site sends for the present task."""
        times = self.register.interval_count
        match self.task.kind:
            case "bids":
                return {bus: sum(shape.bid_parts.values()) for bus, shape in enumerate(shapes)}
            case "wish":
                count = self.product_count + 2 * times * self.is_balanced
                return dict.fromkeys(self.members, 2 * times + count)
            case "answer":
                return dict.fromkeys(self.members, 2 * times + 2 + self.product_count)
            case "regret":
                return dict.fromkeys(self.members, 1)
            case "pull":
                return {}
            case _:
                return {bus: sum(shapes[bus].proof_parts.values()) for bus in self.members}

    @property
    def tasks_needed(self) -> set[int]:
        """Tasks whose messages later tasks read."""
        first = max(self.task.iteration - 1, 1)
        wishes = {number for step, number in self.wish_tasks.items() if step >= first}
        return wishes | {self.task.number, self.bid_task, self.answer_task, self.regret_task}

    def outcome(self) -> dict[str, Any]:
        """Return what is public about the day so far."""
        return {
            "status": self.status,
            "iterations": self.history[-1].iteration if self.history else 0,
            "history": [
                [one.iteration, one.cost, one.gap, one.residual, one.passes] for one in self.history
            ],
            "excluded": {str(bus): reason for bus, reason in self.excluded.items()},
            "certificate": self.certificate,
            "refused": self.refused,
            "unmet": self.unmet if self.status == INFEASIBLE else [],
            "inner": self.register.inner,
        }

    def advance(self, result: dict[str, Any]) -> None:
        """Go on to the next task."""
        missing = result.get("missing")
        if missing:
            self._leave_out(missing)
            return
        kind, iteration = self.task.kind, self.task.iteration
        if "missing" in result:
            self._look_away(kind, iteration)
            return
        match kind:
            case "bids":
                self._go(WISH, 1)
            case "wish":
                self._on_wish(result, iteration)
            case "answer":
                self._on_answer(result, iteration)
            case "regret":
                self._on_regret(result, iteration)
            case "pull":
                self._go(SURPLUS, iteration)
            case "surplus":
                self._on_surplus(result, iteration)
            case "challenge":
                self._on_challenge(result, iteration)
            case _:
                invariant(kind == CERTIFICATE, "nothing follows the end of a day")
                self._on_certificate(result)

    def _go(self, kind: str, iteration: int) -> None:
        self.task = Task(self.task.number + 1, kind, iteration)
        if kind == ANSWER:
            self.answer_task, self.regret_task = self.task.number, -1
        elif kind == REGRET:
            self.regret_task = self.task.number
        if kind == WISH and iteration >= STALLED_FROM and not self.is_watched:
            # From here on every wish follows from the one before it alone, so it can be checked.
            self.is_watched, self.rule = True, MixingRule(1, self.settings.mixing_interval)
        if kind == WISH:
            self.wish_tasks[iteration] = self.task.number
            self._tighten(iteration)

    def _tighten(self, iteration: int) -> None:
        """Set the distance kept from limits, by what the plan costs and rows weigh.

        The former is claimed, so it counts only within public bounds once the day is watched.
        """
        budget = self.settings.inner_share * self._allowed
        is_due = is_tightened(iteration, self.register.inner * self._strength, budget)
        if self.is_watched:
            is_due = iteration % RATINGS_INTERVAL == 0
            most = WATCHED_TURNOVERS * self.turnover_min
            budget = min(budget, self.settings.inner_share * self.settings.gap_max * most)
        if is_due and self._strength > 0.0:
            self.register = self.register.tightened(min(budget / self._strength, INNER_MAX))

    def _narrow(self, result: dict[str, Any]) -> None:
        """Plan again within limits narrowed by what opened about a refused plan."""
        shown, register = result["electrical"]["shown"], self.register
        self.refused.append(
            {"cost": result["cost"], "iterations": len(self.history), "shown": shown}
        )
        own = register.voltage_limits
        limits = narrowed(register.limits, own, register.interval_count, shown)
        self.register = replace(register, limits=limits, inner=0.0)
        self.answer_task = self.regret_task = -1
        self._suspected = 0
        self.history.clear()
        self._restart()

    def begin_again(self) -> None:
        """Begin the coordination anew with the bids as they were committed to, after a loss.

        Who was left out later may come back: it is found out again if it has to be.
        """
        for bus in [bus for bus in self.excluded if bus not in self.absent]:
            del self.excluded[bus]
        self.register = self._opening
        for bus in self.absent:
            if bus in self.flexible:
                self.register = self.register.without(bus)
        self.history.clear()
        self.refused.clear()
        self.answer_task = self.regret_task = -1
        self._suspected = 0
        self.task = Task(0, BIDS, 0)
        self._restart()

    def _leave_out(self, missing: list[list[Any]]) -> None:
        """Give up on sites: they take their fallback, and the coordination starts anew."""
        for bus, reason in missing:
            if self.task.kind == BIDS:
                self.absent.add(int(bus))
            if int(bus) == PAYER:
                continue  # Payments open to the sites alone.
            self.excluded[int(bus)] = str(reason)
            if int(bus) in self.flexible:
                self.register = self.register.without(int(bus))
        self._restart()

    def _look_away(self, kind: str, iteration: int) -> None:
        """Conclude nothing from impossible prices that nobody can be named for."""
        if iteration >= self.settings.iteration_count_max:
            self.status = LIMIT
            self._go(DONE, iteration)
        elif kind == CHALLENGE:
            self._begin(iteration + 1)
        else:
            self._resume(iteration)

    def _restart(self) -> None:
        self.rule = MixingRule(self.settings.memory, self.settings.mixing_interval)
        self.is_watched = False
        self.bindings.clear()
        self.registers.clear()
        self.wish_tasks.clear()
        self.mixture = Mixture(PLAIN)
        self._retry = Retry()
        self.balance = IntervalBalance(self.register.interval_count)
        self.register = self.register.stiffened(None)
        self._go(WISH, 1)

    def _on_wish(self, result: dict[str, Any], iteration: int) -> None:
        self.bindings[iteration] = msgspec.convert(result["binding"], Binding)
        self.hint = None
        self.registers[iteration] = self.register
        self._strength = float(result.get("strength", 0.0))
        self._passes = int(result["passes"])
        if "square" in result:
            self.rule.judge(float(result["square"]))
        if "stiffer" in result:
            self._rebalance(result["stiffer"], result["softer"])
        if iteration == 1:
            self._go(ANSWER, 1)
            return
        if self.history[-1].iteration < iteration:
            # Nothing but prices moved: what was seen last stands.
            self.history.append(replace(self.history[-1], iteration=iteration))
        if result.get("challenged") and iteration > STALLED_FROM:
            self._go(CHALLENGE, iteration)
        else:
            self._begin(iteration + 1)

    def _rebalance(self, stiffer: list[int], softer: list[int]) -> None:
        """Change the penalties of some intervals; what was mixed before is of another map."""
        flags = np.zeros((2, self.register.interval_count), bool)
        flags[0, stiffer], flags[1, softer] = True, True
        if self.balance.change(*flags):
            self.register = self.register.stiffened(self.balance.stiffness)
            self.rule = MixingRule(self.settings.memory, self.settings.mixing_interval)

    def _on_challenge(self, result: dict[str, Any], iteration: int) -> None:
        if result["strange"]:
            reason = "its wish is not what its bid makes of its prices"
            self._leave_out([[bus, reason] for bus in result["strange"]])
        else:
            self._begin(iteration + 1)

    def _begin(self, iteration: int) -> None:
        """Begin an iteration: with a look at the answers where one is due, else with wishes."""
        is_turn = self.is_watched and iteration % ANSWER_INTERVAL == 0
        if self.rule.is_due or is_turn or iteration >= self.settings.iteration_count_max:
            self._go(ANSWER, iteration)
        else:
            self.mixture = self.rule.step_plainly()
            self._go(WISH, iteration)

    def _on_answer(self, result: dict[str, Any], iteration: int) -> None:
        products = [float(value) for value in result["products"]]
        # Who claims a square below zero must not stop the others' machines.
        residual = max(products[0], 0.0) ** 0.5 if products else float("inf")
        cost, gap = float(result["cost"]), float(result["gap"])
        self.history.append(Seen(iteration, cost, gap, residual, self._passes))
        if iteration > 1:
            is_due = self.rule.is_due
            self.mixture = (
                self.rule.decide(products) if is_due and products else self.rule.step_plainly()
            )
        self._claimed, self._fits = (cost, gap), bool(result["fits"])
        if result.get("exceeded"):
            self._bring_in(result["exceeded"])
        if self._is_suspect(iteration, cost, gap):
            self._go(PULL, iteration)
        elif result["fits"] and (
            self.is_watched or self._retry.is_worth_it(residual, gap, self._allowed)
        ):
            self._go(REGRET, iteration)
        else:
            self._resume(iteration)

    @property
    def _allowed(self) -> float:
        """By how much the plan that is claimed may cost more than the cheapest, price units."""
        settings = self.settings
        limits = Tolerances(settings.gap_max, settings.excess_max, self.turnover_min)
        return limits.allowed(self._claimed[0])

    def _bring_in(self, exceeded: list[list[int]]) -> None:
        """Let the next steps look at exceeded rows that none so far knew."""
        latest = max(self.bindings)
        active = self.bindings[latest].active()
        for number, interval in exceeded:
            active.rows[interval].setdefault(number, AT_LOW)
        self.hint = Binding.of(active)

    def _is_suspect(self, iteration: int, cost: float, gap: float) -> bool:
        """Whether prices rise as if limits could not be met."""
        due = [number for number in SUSPICION if number <= iteration]
        is_far = gap < SUSPICIOUS_GAP * max(abs(cost), self.turnover_min)
        if not is_far or len(due) <= self._suspected or not self.binding.active().binding():
            return False
        self._suspected = len(due)
        return True

    def _on_surplus(self, result: dict[str, Any], iteration: int) -> None:
        if result["unproved"]:
            reason = "it relieves the limits less than its bid lets it"
            self._leave_out([[bus, reason] for bus in result["unproved"]])
        elif result["is_unmet"]:
            self.unmet = result["unmet"]
            self.status = INFEASIBLE
            self._go(DONE, iteration)
        else:
            self._resume(iteration)

    def _on_regret(self, result: dict[str, Any], iteration: int) -> None:
        _, gap = self._claimed
        regret = float(result["regret"])
        is_close = self._fits and gap + regret <= self._allowed
        if is_close or iteration >= self.settings.iteration_count_max:
            self.status = CONVERGED if is_close else LIMIT
            self._go(CERTIFICATE, iteration)
            return
        self._retry = Retry(self.history[-1].residual, regret)
        self._resume(iteration)

    def _resume(self, iteration: int) -> None:
        """Take up the coordination after a look at whether it may end."""
        if iteration >= self.settings.iteration_count_max:
            # Everybody says what it regrets: who keeps the day from ending is found out by it.
            self._go(REGRET, iteration)
        elif iteration == 1:
            self._begin(2)
        else:
            self._go(WISH, iteration)

    def _on_certificate(self, result: dict[str, Any]) -> None:
        failed = [(bus, count) for bus, count in enumerate(result["failed"]) if count]
        if failed:
            reason = "its plan or its multipliers break what it committed to"
            self._leave_out([[bus, reason] for bus, _ in failed])
            return
        if result["unlike"]:
            reason = "its plan is not what it claimed in the coordination"
            self._leave_out([[bus, reason] for bus in result["unlike"]])
            return
        if not result["is_close"]:
            self.status = LIMIT
        if "shown" in result["electrical"]:
            self._narrow(result)
            return
        self.certificate = result
        self._go(DONE, self.task.iteration)
