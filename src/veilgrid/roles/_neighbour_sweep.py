"""A site that plans with its neighbours in the default form, as a machine.

The substation gives a command, it goes down the tree, every site does its part, and the replies
are added up on the way back. A site hears from its parent and its children only, and a silent
neighbour stops all: the refusing site of the threat model [docs/protocol/neighbour.md].
"""

from dataclasses import dataclass, field
from functools import reduce
from typing import NamedTuple, TypeVar, cast

import numpy as np

from veilgrid.admm._neighbour_message import packed, unpacked
from veilgrid.admm._neighbour_mix import Blend, Trail
from veilgrid.admm._neighbour_network import NO_ROW, Prices, Substation, Worst, worst_of
from veilgrid.admm._neighbour_sweep import (
    TIGHTENED,
    Agreement,
    Checked,
    Judge,
    NeighbourSettings,
    Report,
    inverse,
    is_possible,
)
from veilgrid.admm._neighbour_words import (
    Announced,
    Answered,
    Candidates,
    Check,
    Closed,
    Command,
    Exceeded,
    Found,
    Go,
    Level,
    Move,
    Opened,
    Reply,
    Wishes,
)
from veilgrid.admm.certify import TURNOVER_MIN
from veilgrid.admm.outcome import RunStatus
from veilgrid.admm.site_step import SiteStep
from veilgrid.errors import InvariantError, invariant
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Flows, Limits, charging_injection
from veilgrid.grid.network import Floats, Integers
from veilgrid.grid.site import Site
from veilgrid.machine import Compute, Computed, Decide, Effect, Event, NodeId, Received, Send
from veilgrid.roles._neighbour_edge import Agreed

T = TypeVar("T")


class Own(NamedTuple):
    """A site's answer: set-points and net demand (flow=2, interval)."""

    setpoints: Floats
    demand: Floats


def answer_site(step: SiteStep, price: Floats, target: Floats) -> Own:
    """Solve one site's problem; arrays are (flow=2, interval)."""
    found = step.answer(price[:1], price[1:], target[:1], target[1:])
    return Own(found.setpoints[0], np.concatenate([found.demand_p, found.demand_q]))


def _known(value: T | None, claim: str) -> T:
    invariant(value is not None, claim)
    return cast("T", value)


@dataclass
class _State:
    """Everything that changes."""

    iteration: int = 1
    pass_: int = 0
    is_over: bool = False
    expected: type[Reply] | None = Opened
    allowed: tuple[type[Command], ...] = ()
    mine: Reply | None = None
    replies: dict[NodeId, Reply] = field(default_factory=dict)
    scale: float = 1.0
    setpoints: Floats = field(default_factory=lambda: np.zeros(0))
    demand: Floats = field(default_factory=lambda: np.zeros(0))
    wish: Floats = field(default_factory=lambda: np.zeros(0))
    wished: Flows | None = None
    """At the own bus if all wishes came true."""
    aimed: Flows | None = None
    """At the own bus if all targets were met."""
    wish_flow: Floats = field(default_factory=lambda: np.zeros(0))
    demand_flow: Floats = field(default_factory=lambda: np.zeros(0))
    level: Floats | None = None
    at: Prices | None = None
    nodal: tuple[Floats, Floats] | None = None
    target: Floats = field(default_factory=lambda: np.zeros(0))
    price: Floats = field(default_factory=lambda: np.zeros(0))
    moved: tuple[float, float] = (0.0, 0.0)


@dataclass
class _Root:
    """What only the substation keeps."""

    substation: Substation
    judge: Judge | None = None
    report: Report | None = None


class SweepSite:
    """One site as a machine; the substation is the one without parent."""

    def __init__(
        self,
        agreement: Agreement,
        bus: int,
        site: Site,
        parent: NodeId | None,
        children: tuple[NodeId, ...],
    ) -> None:
        self._agreement, self._bus, self._site = agreement, bus, site
        self._parent, self._children = parent, children
        self._count = len(agreement.buy)
        self._base = np.array([agreement.penalty_p[bus], agreement.penalty_q[bus]])[:, np.newaxis]
        self._is_flexible = bool(agreement.penalty_p[bus] > 0.0)
        self._network = agreement.network(1.0)
        self._charging = np.zeros((2, 1))
        self._charging[1] = charging_injection(agreement.edges.tree)[bus]
        self._trail = Trail(agreement.settings.memory)
        self._steps: dict[float, SiteStep] = {}
        self._state = _State()
        self._root = (
            _Root(Substation(self._network, agreement.buy, agreement.sell, agreement.strength_max))
            if parent is None
            else None
        )

    def _step(self, scale: float) -> SiteStep:
        """Return the own problem at a scale of the penalties; 0 = prices alone."""
        if scale not in self._steps:
            weight = scale * self._base
            self._steps[scale] = SiteStep([self._site], weight[0], weight[1])
        return self._steps[scale]

    def start(self) -> list[Effect]:
        """Begin: answer the tariff alone."""
        price = np.stack([self._agreement.buy, np.zeros(self._count)])
        return self._ask("open", 0.0, price, np.zeros_like(price))

    def _ask(self, job: str, scale: float, price: Floats, target: Floats) -> list[Effect]:
        """Let the own problem be solved; a site without choice has its answer at once."""
        name = (job, self._state.iteration)
        if self._is_flexible:
            return [Compute(name, answer_site, (self._step(scale), price, target))]
        x = np.clip(0.0, self._site.lower, self._site.upper)
        demand = np.stack([self._site.demand_p(x), self._site.demand_q(x)])
        return self.handle(Computed(name, Own(x, demand)))

    def handle(self, event: Event) -> list[Effect]:
        """Advance by one event; what does not fit is ignored."""
        state = self._state
        if state.is_over:
            return []
        match event:
            case Computed(("open", 1), value) if state.mine is None:
                return self._opened(value)
            case Computed(("near", iteration), value) if iteration == state.iteration:
                return self._answered(value)
            case Computed(("check", iteration), value) if iteration == state.iteration:
                return self._found(value)
            case Received(sender, message) if sender in self._children:
                return self._on_reply(sender, message)
            case Received(sender, message) if sender == self._parent:
                return self._on_command(message)
            case _:
                return []  # Late, foreign or malformed: normal between strangers.

    # Replies come up: wait for all children and the own part, add up, pass on.

    def _on_reply(self, sender: NodeId, message: object) -> list[Effect]:
        state = self._state
        if state.expected is None or not isinstance(message, state.expected):
            return []
        if sender in state.replies or not self._is_sound(message):
            return []
        state.replies[sender] = message
        return self._pass_up()

    def _is_sound(self, reply: Reply) -> bool:
        """Whether a reply belongs here and now and has the right shape."""
        state, count = self._state, self._count
        if not isinstance(reply, Opened) and reply.iteration != state.iteration:
            return False
        match reply:
            case Opened(wishes, load):
                return _fits((wishes, 2, count), (load, 1, count))
            case Wishes(_, wishes):
                return _fits((wishes, 2, count))
            case Exceeded(_, wished):
                return _fits((wished, 1, self._rows))
            case Candidates(_, pass_, number, excess, wished):
                sizes = {len(number), len(excess), len(wished)}
                if pass_ != state.pass_ or sizes != {8 * count}:
                    return False
                values = np.frombuffer(excess + wished, dtype="<f8")
                rows = _integers(number)
                return not bool(np.isnan(values).any()) and self._are_rows(rows[rows != NO_ROW])
            case Answered():
                figures = (*reply.steps, *reply.strides, *list_of(reply))
                return _fits((reply.demand, 2, count), (reply.lack, 2, count)) and bool(
                    np.isfinite(figures).all()
                )
            case Found(_, excess, apart, regret):
                return not bool(np.isnan([excess, apart, regret]).any())

    def _are_rows(self, numbers: Integers) -> bool:
        return all(self._network.is_row(int(number)) for number in numbers)

    @property
    def _rows(self) -> int:
        return 0 if self._state.at is None else len(self._state.at.numbers)

    def _reply(self, mine: Reply) -> list[Effect]:
        self._state.mine = mine
        return self._pass_up()

    def _pass_up(self) -> list[Effect]:
        state = self._state
        if state.mine is None or len(state.replies) < len(self._children):
            return []
        arrived = [state.replies[child] for child in self._children]
        total = self._completed(reduce(_added, arrived, state.mine))
        if total is None:
            return []
        state.mine, state.expected = None, None
        state.replies.clear()
        if self._parent is None:
            return self._decide(total)
        state.allowed = _NEXT[type(total)]
        return [Send(self._parent, total)]

    def _completed(self, total: Reply) -> Reply | None:
        """Keep what the own sums say about the own edge; ``None`` = children disagree in length."""
        state, count = self._state, self._count
        match total:
            case Opened(wishes, _) | Wishes(_, wishes):
                state.wish_flow = _array(wishes, 2, count)
            case Answered():
                state.demand_flow = _array(total.demand, 2, count)
                if len(total.steps) != len(self._trail) or len(total.strides) != len(self._trail):
                    return None
                apart = 0.0
                if self._parent is not None:
                    wide = 1 if self._agreement.limits.are_absent else 2
                    apart = float(np.abs(_array(total.lack, 2, count)[:wide]).max())
                return _with_apart(total, max(total.apart, apart))
        return total

    # Commands go down: check them, hand them on, do the own part.

    def _on_command(self, message: object) -> list[Effect]:
        state = self._state
        if not isinstance(message, state.allowed or ()):
            return []
        command = message
        expected = state.iteration + 1 if isinstance(command, Move) else state.iteration
        if command.iteration != expected or not self._is_obeyable(command):
            return []
        state.allowed = ()
        return self._obey(command)

    def _is_obeyable(self, command: Command) -> bool:
        count = self._count
        match command:
            case Level(_, voltage) | Check(_, voltage):
                return _fits((voltage, 1, count))
            case Announced():
                new = len(command.numbers) // 8
                rows = 8 * (self._rows + new)
                sizes = (len(command.strengths), len(command.intervals), len(command.numbers))
                if sizes != (rows, 8 * new, 8 * new) or not np.isfinite(command.inner):
                    return False
                intervals = _integers(command.intervals)
                return (
                    _fits((command.price, 1, count), (command.strengths, 1, rows // 8))
                    and bool(((intervals >= 0) & (intervals < count)).all())
                    and self._are_rows(_integers(command.numbers))
                )
            case Move(_, weights, reach, stretch, is_retreat, factor):
                blend = Blend(np.array(weights), reach, stretch, is_retreat)
                figures = (*weights, reach, stretch, factor)
                is_usable = factor != 1.0 or self._trail.fits(blend)
                return bool(np.isfinite(figures).all()) and factor > 0.0 and is_usable
            case Closed(_, status):
                return status in (RunStatus.CONVERGED, RunStatus.ITERATION_LIMIT)
            case Go():
                return True

    def _obey(self, command: Command) -> list[Effect]:
        match command:
            case Level(_, voltage):
                return self._on_level(_array(voltage, 1, self._count)[0])
            case Announced():
                return self._on_prices(command)
            case Go():
                return self._hand_on(command, Answered) + self._go()
            case Check(_, voltage):
                return self._on_check(_array(voltage, 1, self._count)[0])
            case Move():
                return self._on_move(command)
            case Closed(_, status):
                return self._close(RunStatus(status))

    def _hand_on(self, command: Command, expected: type[Reply] | None) -> list[Effect]:
        self._state.expected = expected
        return [Send(child, command) for child in self._children]

    def _opened(self, own: Own) -> list[Effect]:
        state = self._state
        if not is_possible(self._site, own.setpoints):
            state.is_over = True
            none = np.zeros(0)
            return [Decide(Agreed(RunStatus.INFEASIBLE, 0, none, none, none))]
        price = np.stack([self._agreement.buy, np.zeros(self._count)])
        state.setpoints, state.demand = own
        state.wish = own.demand + inverse(self._base) * price
        load = np.abs(self._site.load_p)
        return self._reply(Opened(packed(state.wish - self._charging), packed(load)))

    def _drop(self, flow: Floats) -> Floats:
        tree, bus = self._agreement.edges.tree, self._bus
        if self._parent is None:
            return np.zeros(self._count)
        return np.asarray(
            2.0 * (tree.resistance_pu[bus] * flow[0] + tree.reactance_pu[bus] * flow[1])
        )

    def _on_level(self, upper: Floats) -> list[Effect]:
        """Learn the own voltage at wishes, and by how much they exceed the own rows in play."""
        state = self._state
        voltage = upper - self._drop(state.wish_flow)
        sent = self._hand_on(Level(state.iteration, packed(voltage)), Exceeded)
        state.pass_ = 0
        state.wished = Flows(state.wish_flow[0], state.wish_flow[1], voltage)
        wished = np.zeros(self._rows)
        if state.at is not None:
            numbers, excess = self._network.own_excess(self._bus, state.wished)
            for place, (number, interval) in enumerate(
                zip(state.at.numbers, state.at.intervals, strict=True)
            ):
                mine = np.flatnonzero(numbers == number)
                if len(mine):
                    wished[place] = excess[mine[0], interval]
        return sent + self._reply(Exceeded(state.iteration, packed(wished)))

    def _on_prices(self, command: Announced) -> list[Effect]:
        """Learn prices; with limits, look for rows that the targets still exceed."""
        state = self._state
        has_limits = not self._agreement.limits.are_absent
        sent = self._hand_on(command, Candidates if has_limits else Answered)
        none = np.zeros(0, dtype=np.int64)
        numbers, intervals = (none, none) if state.at is None else state.at[1:3]
        state.at = at = Prices(
            _array(command.price, 1, self._count)[0],
            np.concatenate([numbers, _integers(command.numbers)]),
            np.concatenate([intervals, _integers(command.intervals)]),
            np.frombuffer(command.strengths, dtype="<f8").astype(np.float64),
            command.inner,
        )
        state.pass_ = command.pass_
        state.nodal = nodal = self._network.nodal(at)
        if not has_limits:
            return sent + self._go()
        wished = _known(state.wished, "voltages come before prices")
        state.aimed = self._network.shifted(self._bus, wished, *nodal)
        rows, excess = self._network.own_excess(self._bus, state.aimed)
        _, before = self._network.own_excess(self._bus, wished)
        worst = worst_of(rows, excess, before, at)
        mine = Candidates(
            state.iteration,
            state.pass_,
            np.ascontiguousarray(worst.number, dtype="<i8").tobytes(),
            packed(worst.excess),
            packed(worst.wished),
        )
        return sent + self._reply(mine)

    def _go(self) -> list[Effect]:
        """Answer near the own target."""
        state = self._state
        nodal = _known(state.nodal, "prices come before answers")
        before = (state.price, state.target)
        state.price = np.stack([part[self._bus] for part in nodal])
        weight = state.scale * self._base
        state.target = state.wish - inverse(weight) * state.price
        if state.iteration > 1:
            state.moved = (
                float((inverse(weight) * (state.price - before[0]) ** 2).sum()),
                float((weight * (state.target - before[1]) ** 2).sum()),
            )
        return self._ask("near", state.scale, state.price, state.target)

    def _answered(self, own: Own) -> list[Effect]:
        state, settings = self._state, self._agreement.settings
        state.setpoints, state.demand = own
        root = np.sqrt(state.scale * self._base)
        lack = own.demand - state.target if self._is_flexible else np.zeros_like(own.demand)
        point, step = root * state.wish, settings.relaxation * root * lack
        steps, strides = self._trail.push(point.ravel(), step.ravel())
        mine = Answered(
            iteration=state.iteration,
            demand=packed(own.demand - self._charging),
            lack=packed(lack),
            steps=tuple(steps.tolist()),
            strides=tuple(strides.tolist()),
            cost=self._site.cost(own.setpoints),
            paid=float((state.price * own.demand).sum()),
            apart=0.0,
            price_moved=state.moved[0],
            target_moved=state.moved[1],
        )
        return self._reply(mine)

    def _on_check(self, upper: Floats) -> list[Effect]:
        state = self._state
        state.level = upper - self._drop(state.demand_flow)
        sent = self._hand_on(Check(state.iteration, packed(state.level)), Found)
        return sent + self._ask("check", 0.0, state.price, np.zeros_like(state.price))

    def _found(self, best: Own) -> list[Effect]:
        state, network = self._state, self._network
        excess, apart = -np.inf, 0.0
        if not self._agreement.limits.are_absent:
            level = _known(state.level, "a check brings the voltage")
            plan = Flows(state.demand_flow[0], state.demand_flow[1], level)
            _, rows = network.own_excess(self._bus, plan)
            excess = float(rows.max(initial=-np.inf))
            aimed = _known(state.aimed, "prices come before checks").voltage_squared
            apart = float(np.abs(level - aimed).max())
        own = self._site.cost(state.setpoints) - self._site.cost(best.setpoints)
        regret = max(own + float((state.price * (state.demand - best.demand)).sum()), 0.0)
        return self._reply(Found(state.iteration, excess, apart, regret))

    def _on_move(self, command: Move) -> list[Effect]:
        """Make the next wish and begin the next iteration."""
        state, settings = self._state, self._agreement.settings
        sent = self._hand_on(command, Wishes)
        state.iteration = command.iteration
        if command.factor != 1.0:
            plain = state.target + settings.relaxation * (state.demand - state.target)
            state.scale *= command.factor
            self._network = self._agreement.network(state.scale)
            self._trail.forget()
            if self._is_flexible:
                state.wish = plain + inverse(state.scale * self._base) * state.price
        else:
            blend = Blend(
                np.array(command.weights), command.reach, command.stretch, command.is_retreat
            )
            point = self._trail.follow(blend).reshape(state.wish.shape)
            root = np.sqrt(state.scale * self._base)
            wide = np.broadcast_to(root, point.shape)
            state.wish = np.divide(point, wide, out=state.wish.copy(), where=wide > 0.0)
        return sent + self._reply(Wishes(state.iteration, packed(state.wish - self._charging)))

    def _close(self, status: RunStatus) -> list[Effect]:
        state = self._state
        state.is_over = True
        sent = self._hand_on(Closed(state.iteration, status), None)
        none = np.zeros(0)
        if self._parent is None:
            agreed = Agreed(status, state.iteration, state.setpoints, none, none)
            return [*sent, Decide(agreed)]
        at, edges = _known(state.at, "a run that ends has prices"), self._agreement.edges
        multiplier = self._network.multipliers(edges, at)[edges.of_bus[self._bus]]
        agreed = Agreed(status, state.iteration, state.setpoints, state.demand_flow, multiplier)
        return [*sent, Decide(agreed)]

    # The substation's turn.

    def _decide(self, total: Reply) -> list[Effect]:
        state, root = self._state, _known(self._root, "only the substation decides")
        slack = np.full(self._count, self._agreement.edges.tree.slack_voltage_pu**2)
        match total:
            case Opened(_, load):
                loads = _array(load, 1, self._count)[0]
                turnover = max(0.01 * float((self._agreement.buy * loads).sum()), TURNOVER_MIN)
                root.judge = Judge(self._agreement, turnover)
                return self._begin(slack)
            case Wishes():
                return self._begin(slack)
            case Exceeded(_, wished):
                rows = _array(wished, 1, self._rows)[0]
                return self._announce(root.substation.begin(self._total_wish(), rows))
            case Candidates():
                worst = Worst(
                    _integers(total.number),
                    np.frombuffer(total.excess, dtype="<f8").astype(np.float64),
                    np.frombuffer(total.wished, dtype="<f8").astype(np.float64),
                )
                if root.substation.add(worst):
                    return self._announce(root.substation.at)
                return self._obey(Go(state.iteration))
            case Answered():
                return self._weigh(root, total, slack)
            case Found(_, excess, apart, regret):
                report = _known(root.report, "a check follows an answer")
                judge = _known(root.judge, "the day has been opened")
                if judge.is_met(report, Checked(excess, apart, regret)):
                    return self._close(RunStatus.CONVERGED)
                return self._go_on(root, judge, report)

    def _total_wish(self) -> Floats:
        return np.asarray(self._state.wish_flow[0])

    def _begin(self, slack: Floats) -> list[Effect]:
        if not self._agreement.limits.are_absent:
            return self._obey(Level(self._state.iteration, packed(slack)))
        root = _known(self._root, "only the substation decides")
        return self._announce(root.substation.begin(self._total_wish(), np.zeros(0)))

    def _announce(self, at: Prices) -> list[Effect]:
        state, known = self._state, self._rows
        command = Announced(
            state.iteration,
            state.pass_ + 1 if not self._agreement.limits.are_absent else 1,
            packed(at.price),
            packed(at.strengths),
            np.ascontiguousarray(at.numbers[known:], dtype="<i8").tobytes(),
            np.ascontiguousarray(at.intervals[known:], dtype="<i8").tobytes(),
            at.inner,
        )
        return self._obey(command)

    def _weigh(self, root: _Root, total: Answered, slack: Floats) -> list[Effect]:
        judge = _known(root.judge, "the day has been opened")
        root.report = report = Report(
            demand=_array(total.demand, 2, self._count)[0],
            steps=np.array(total.steps),
            strides=np.array(total.strides),
            cost=total.cost,
            paid=total.paid,
            apart=total.apart,
            price_moved=total.price_moved,
            target_moved=total.target_moved,
        )
        if judge.is_promising(report, root.substation.rent()):
            return self._obey(Check(self._state.iteration, packed(slack)))
        return self._go_on(root, judge, report)

    def _go_on(self, root: _Root, judge: Judge, report: Report) -> list[Effect]:
        state, settings = self._state, self._agreement.settings
        if state.iteration >= settings.iteration_count_max:
            return self._close(RunStatus.ITERATION_LIMIT)
        if state.iteration + 1 in TIGHTENED:
            root.substation.tighten(settings.inner_share * settings.gap_max * judge.size)
        verdict = judge.go_on(report)
        if verdict.factor != 1.0:
            root.substation.network = self._agreement.network(state.scale * verdict.factor)
        blend = verdict.blend
        command = Move(
            state.iteration + 1,
            tuple(blend.weights.tolist()),
            blend.reach,
            blend.stretch,
            blend.is_retreat,
            verdict.factor,
        )
        return self._obey(command)


_NEXT: dict[type[Reply], tuple[type[Command], ...]] = {
    Opened: (Level, Announced),
    Wishes: (Level, Announced),
    Exceeded: (Announced,),
    Candidates: (Announced, Go),
    Answered: (Check, Move, Closed),
    Found: (Move, Closed),
}
"""Which commands may follow a reply."""


def list_of(reply: Answered) -> tuple[float, ...]:
    """Return the single figures of an answer."""
    return (reply.cost, reply.paid, reply.apart, reply.price_moved, reply.target_moved)


def _fits(*parts: tuple[bytes, int, int]) -> bool:
    return all(unpacked(content, rows, count) is not None for content, rows, count in parts)


def _array(content: bytes, rows: int, count: int) -> Floats:
    return _known(unpacked(content, rows, count), "a message is checked when it arrives")


def _integers(content: bytes) -> Integers:
    return np.frombuffer(content, dtype="<i8").astype(np.int64)


def _sum(one: bytes, other: bytes) -> bytes:
    return packed(np.frombuffer(one, dtype="<f8") + np.frombuffer(other, dtype="<f8"))


def _added(one: Reply, other: Reply) -> Reply:
    """Add up two replies of one kind."""
    match one, other:
        case Opened(), Opened():
            return Opened(_sum(one.wishes, other.wishes), _sum(one.load, other.load))
        case Wishes(), Wishes():
            return Wishes(one.iteration, _sum(one.wishes, other.wishes))
        case Exceeded(), Exceeded():
            return Exceeded(one.iteration, _sum(one.wished, other.wished))
        case Candidates(), Candidates():
            worse = _worst(one).joined(_worst(other))
            number = np.ascontiguousarray(worse.number, dtype="<i8").tobytes()
            return Candidates(
                one.iteration, one.pass_, number, packed(worse.excess), packed(worse.wished)
            )
        case Answered(), Answered():
            pairs = zip(one.steps, other.steps, strict=False)
            strides = zip(one.strides, other.strides, strict=False)
            return Answered(
                iteration=one.iteration,
                demand=_sum(one.demand, other.demand),
                lack=_sum(one.lack, other.lack),
                steps=tuple(a + b for a, b in pairs),
                strides=tuple(a + b for a, b in strides),
                cost=one.cost + other.cost,
                paid=one.paid + other.paid,
                apart=max(one.apart, other.apart),
                price_moved=one.price_moved + other.price_moved,
                target_moved=one.target_moved + other.target_moved,
            )
        case Found(), Found():
            return Found(
                one.iteration,
                max(one.excess, other.excess),
                max(one.apart, other.apart),
                one.regret + other.regret,
            )
    raise InvariantError("violated: only replies of one kind are added up")


def _worst(reply: Candidates) -> Worst:
    return Worst(
        _integers(reply.number),
        np.frombuffer(reply.excess, dtype="<f8"),
        np.frombuffer(reply.wished, dtype="<f8"),
    )


def _with_apart(reply: Answered, apart: float) -> Answered:
    return Answered(
        iteration=reply.iteration,
        demand=reply.demand,
        lack=reply.lack,
        steps=reply.steps,
        strides=reply.strides,
        cost=reply.cost,
        paid=reply.paid,
        apart=apart,
        price_moved=reply.price_moved,
        target_moved=reply.target_moved,
    )


def sweep_sites(day: Day, limits: Limits, settings: NeighbourSettings) -> dict[NodeId, SweepSite]:
    """Make the machines of all sites of a day, named after their buses."""
    agreement = Agreement.of(day, limits, settings)
    edges = agreement.edges
    names = [NodeId(bus.name) for bus in day.network.buses]
    machines = {}
    for bus, name in enumerate(names):
        below = np.flatnonzero(edges.parent == bus)
        edge = int(edges.of_bus[bus])
        machines[name] = SweepSite(
            agreement,
            bus,
            day.sites[bus],
            names[edges.parent[edge]] if edge >= 0 else None,
            tuple(names[child] for child in edges.child[below]),
        )
    return machines
