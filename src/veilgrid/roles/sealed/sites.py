"""The sites of a sealed day: bids, wishes, answers and proofs from own secrets [sealed 4.1].

A group holds the edge devices of several sites that run in one process. Each site signs and
shares its own messages; the group only saves solving small problems one by one. What it hears
and says is here, its numbers are in :mod:`.sites_own`, its solving in :mod:`.sites_solve`.
"""

import copy
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final

import msgspec
import numpy as np

from veilgrid.admm.site_step import SiteAnswer
from veilgrid.errors import invariant
from veilgrid.grid.network import Floats
from veilgrid.grid.site import Site
from veilgrid.machine import (
    START,
    Compute,
    Computed,
    Decide,
    Effect,
    Event,
    NodeId,
    Persist,
    Received,
    Send,
    SetTimer,
    TimerFired,
)
from veilgrid.mpc.client import Seeds, digest_of, submit_with_seeds
from veilgrid.roles.sealed.believed import WORDS, WORDS_NS, Stops, agreed
from veilgrid.roles.sealed.bid import Shape, bid_of
from veilgrid.roles.sealed.course import Course
from veilgrid.roles.sealed.heard import BID, client_of
from veilgrid.roles.sealed.judge import COST_BITS
from veilgrid.roles.sealed.keys import SiteKeys
from veilgrid.roles.sealed.kinds import (
    ANSWER,
    CERTIFICATE,
    CHALLENGE,
    DONE,
    PULL,
    REGRET,
    SURPLUS,
    WISH,
)
from veilgrid.roles.sealed.message import (
    Again,
    Agreement,
    Began,
    Notice,
    Over,
    Rejoined,
    Stopped,
    Wished,
)
from veilgrid.roles.sealed.register import FACTOR_BITS, POWER_BITS, Integers
from veilgrid.roles.sealed.sites_kept import Proved, SiteOutcome, SiteRecord
from veilgrid.roles.sealed.sites_own import OwnSites
from veilgrid.roles.sealed.sites_solve import Cheapest, cheapest, free_of_cost, near
from veilgrid.secret import Randomness, Secret

_ANSWERED: Final = "answered"
_CHEAPEST: Final = "cheapest"
WISHES_KEPT_INTERVAL: Final = 4
"""Iterations from one record of where the sites stand to the next."""


def _octets(own: list[int], arrays: Floats | list[Floats]) -> dict[int, bytes]:
    return {
        bus: np.ascontiguousarray(one, dtype="<f8").tobytes()
        for bus, one in zip(own, arrays, strict=True)
    }


class SiteGroup:
    """Sites of one process, over all tasks of a day.

    Parameters
    ----------
    me
        Name of the process.
    agreement
        Who takes part.
    course
        Where the day starts; a copy for this group alone.
    sites : by bus
        The sites' own problems.
    costs_alone : by bus, currency
        What each would pay alone.
    keys : by bus
        Each site's own keys.
    executor
        Where sites are solved side by side.
    records
        What an earlier life of this process persisted.
    start
        Where the sites stood when the last day ended: from there the second iteration begins,
        if the same sites take part. The first answers the tariff in any case.
    """

    def __init__(
        self,
        me: NodeId,
        agreement: Agreement,
        course: Course,
        sites: Mapping[int, Site],
        costs_alone: Mapping[int, float],
        *,
        keys: Mapping[int, SiteKeys],
        randomness: Randomness,
        executor: ThreadPoolExecutor,
        records: Sequence[SiteRecord] = (),
        start: Wished | None = None,
    ) -> None:
        self.me, self.agreement, self.course = me, agreement, course
        self._sites, self._alone, self._keys = dict(sites), dict(costs_alone), dict(keys)
        self._shapes = {bus: Shape.of(site) for bus, site in sites.items()}
        self._randomness, self._executor = randomness, executor
        self._notices: dict[int, dict[NodeId, Notice]] = {}
        self._seeds: dict[int, Seeds] = {}
        self._payments: dict[int, float] = {}
        self._own_costs: dict[int, float] = {}
        self._is_over = False
        self._stops = Stops()
        self._opening, self._agains = copy.deepcopy(course), dict[NodeId, Again]()
        self._is_warm = self._is_back = False
        self._wished: Wished | None = None
        self._start = start
        self._ended: SiteOutcome | None = None
        self._proved: Proved | None = None
        self._overs: dict[NodeId, Over] = {}
        self.bid_digests: dict[int, bytes] = {}
        self._restore(records)
        self._arrange()

    def _restore(self, records: Sequence[SiteRecord]) -> None:
        """Take up what an earlier life left; it says nothing more in that attempt."""
        for record in records:
            match record:
                case Began(attempt, _, bids, seeds):
                    self.bid_digests = dict(bids)
                    n, degree = len(self.agreement.parties), self.agreement.degree
                    self._seeds = {bus: Seeds(n, degree, Secret(one)) for bus, one in seeds.items()}
                    self._is_back = True
                    self.agreement = replace(self.agreement, attempt=attempt)
                case Wished():
                    self._wished = record
                case Proved():
                    self._proved = record
                case SiteOutcome():
                    self._ended = record

    def _arrange(self) -> None:
        """Prepare for the sites that still take part."""
        own = [bus for bus in self.course.members if bus in self._sites]
        memory = self.course.settings.memory
        self._mine = OwnSites(self._sites, own, self.course.register, memory, self._executor)
        self._cheapest: Cheapest | None = None

    # -- events ---------------------------------------------------------------------------------

    def handle(self, event: Event) -> list[Effect]:
        """Advance by one event. All branching on event kind happens here."""
        if self._is_over:
            return []
        match event:
            case TimerFired(name) if name == START:
                return self._back() if self._is_back else self._bid()
            case Received(sender, Over() as over) if sender in self.agreement.parties:
                return self._on_over(sender, over)
            case Received(_, Notice()) if self._is_back:
                return []
            case Computed((_, number), value) if number == self._job:
                return self._on_computed(value)
            case Received(sender, Notice() as notice) if sender in self.agreement.parties:
                return self._on_notice(sender, notice)
            case Received(sender, Stopped() as stopped) if sender in self.agreement.parties:
                return self._on_word(sender, stopped)
            case TimerFired(name) if name == WORDS and self._stops.last is not None:
                return self._on_stopped(self._stops.last)
            case Received(sender, Again() as again) if sender in self.agreement.parties:
                return self._on_again(sender, again)
            case _:
                return []

    def _back(self) -> list[Effect]:
        """Ask for another attempt: what an earlier life said cannot be gone on with."""
        if self._ended is not None:
            self._is_over = True
            return [Decide(self._ended)]
        word = Rejoined(self.agreement.day, self.agreement.attempt)
        return [Send(party, word) for party in self.agreement.parties]

    def _on_over(self, sender: NodeId, over: Over) -> list[Effect]:
        """End with the plan that was proved: the day ended while this process was away."""
        if not self._is_back or over.day != self.agreement.day:
            return []
        self._overs[sender] = over
        told, proved = agreed(self._overs, self.agreement), self._proved
        if told is None:
            return []
        opened, ended = msgspec.msgpack.decode(told.public), (told.attempt, told.task)
        is_last = proved is not None and (proved.attempt, proved.task + 1) == ended
        if proved is None or not is_last or not opened["certificate"]:
            reason = "the day ended while this process was away, and its part is lost"
            return self._on_stopped(Stopped(self.agreement.day, told.task, reason, []))
        session = replace(self.agreement, attempt=told.attempt).session(proved.task)
        self._read_amounts(told.own, session)
        outcome = msgspec.structs.replace(
            proved.plan,
            payments=self._payments,
            own_costs=self._own_costs,
            public=opened,
        )
        self._is_over = True
        return [Persist(outcome), Decide(outcome)]

    def _read_amounts(self, own: Mapping[int, bytes], session: bytes) -> None:
        """Read payments and costs; who never bid pays nothing."""
        unit = self.course.register.unit
        self._payments = dict.fromkeys(self._sites, 0.0)
        self._own_costs = dict.fromkeys(self._sites, 0.0)
        for bus, octets in own.items():
            values = self._seeds[bus].unpadded(octets, session)
            amounts = [value / 2.0 ** (COST_BITS + 1) * unit for value in values]
            self._payments[bus], self._own_costs[bus] = amounts

    def _bid(self) -> list[Effect]:
        unit = self.course.register.unit
        bids = {bus: bid_of(site, unit, self._alone[bus]) for bus, site in self._sites.items()}
        said = self._submit(bids, BID)
        return [Persist(self._began()), *said]

    def _began(self) -> Began:
        """Return the record of the present attempt, and of what the bids' pads come from."""
        seeds = {
            bus: one.octets.reveal_to("own encrypted journal") for bus, one in self._seeds.items()
        }
        return Began(self.agreement.attempt, bids=self.bid_digests, seeds=seeds)

    def _submit(self, vectors: Mapping[int, Integers | list[int]], name: str) -> list[Effect]:
        """Share one vector a site with all parties, for the present task."""
        agreement, session = self.agreement, self.agreement.session(self.course.task.number)
        effects: list[Effect] = []
        for bus, vector in vectors.items():
            submission, seeds = submit_with_seeds(
                session,
                client_of(bus, name),
                [int(value) for value in vector],
                degree=agreement.degree,
                box_keys=agreement.box_keys,
                signer=self._keys[bus].signer,
                randomness=self._randomness,
            )
            if name == BID:
                self.bid_digests[bus], self._seeds[bus] = digest_of(submission), seeds
            effects += [Send(party, submission) for party in agreement.parties]
        return effects

    # -- hearing --------------------------------------------------------------------------------

    def _on_notice(self, sender: NodeId, notice: Notice) -> list[Effect]:
        number = self.course.task.number
        if not self._is_of_now(notice) or not number <= notice.task <= number + 1:
            return []
        self._notices.setdefault(notice.task, {})[sender] = notice
        return self._go_on()

    def _is_of_now(self, said: Notice) -> bool:
        return (said.day, said.attempt) == (self.agreement.day, self.agreement.attempt)

    @property
    def _job(self) -> tuple[int, int]:
        return self.agreement.attempt, self.course.task.number

    def _on_again(self, sender: NodeId, again: Again) -> list[Effect]:
        """Begin again once more parties say so than may be corrupt, from the last wishes."""
        agreement = self.agreement
        if again.day != agreement.day or again.attempt <= agreement.attempt:
            return []
        self._agains[sender] = again
        if list(self._agains.values()).count(again) <= agreement.degree:
            return []
        self._agains.clear()
        self._notices.clear()
        self.agreement = replace(agreement, attempt=again.attempt)
        is_warm = self.course.task.iteration > 1
        former, was_back, self._is_back = self._mine, self._is_back, False
        if again.is_from_bids or was_back:
            self.course = copy.deepcopy(self._opening)
        if again.is_from_bids:
            self._arrange()
            return self._bid()
        if was_back:
            self.course.advance(msgspec.msgpack.decode(again.bids))
        self.course.begin_again()
        self._arrange()
        if is_warm and former.own == self._mine.own:
            self._is_warm = True
            self._mine.resume(former)
        elif was_back and self._wished is not None and self._wished.own == self._mine.own:
            self._is_warm = self._mine.restore(self._wished.values)
        return [Persist(self._began()), *self._act()]

    def _on_word(self, sender: NodeId, stopped: Stopped) -> list[Effect]:
        """Stop once more parties say so than may be corrupt."""
        is_clear = self._stops.take(sender, stopped, self.agreement)
        if is_clear and self._stops.last is not None:
            return self._on_stopped(self._stops.last)
        return [SetTimer(WORDS, WORDS_NS)] if self._stops.last else []

    def _on_stopped(self, stopped: Stopped) -> list[Effect]:
        self._is_over = True
        return [Decide(stopped)]

    def _go_on(self) -> list[Effect]:
        """Do the next task once enough parties agree on what the last one opened."""
        task = self.course.task
        notice = agreed(self._notices.get(task.number, {}), self.agreement)
        if notice is None:
            return []
        result = msgspec.msgpack.decode(notice.result)
        self._read(notice.own)
        self._notices.pop(task.number, None)
        before = set(self.course.excluded), len(self.course.refused)
        if task.kind == WISH and not result.get("missing"):
            self._mine.count_moves(is_counted=self.course.is_moving_counted)
        self.course.advance(result)
        if (set(self.course.excluded), len(self.course.refused)) != before:
            self._start = self.stand()  # Fits where a plan was refused, not where a site was.
            self._arrange()
        elif self.course.register.stiffness is not self._mine.register.stiffness:
            self._mine.reweigh(self.course.register)
        return self._act()

    def _read(self, own: Mapping[int, bytes]) -> None:
        """Take the pads off what opens to the sites of this group alone."""
        task, unit = self.course.task, self.course.register.unit
        if task.kind == CERTIFICATE:
            self._read_amounts(own, self.agreement.session(task.number))
            return
        for bus, octets in own.items():
            values = self._seeds[bus].unpadded(octets, self.agreement.session(task.number))
            prices = np.array(values, dtype=np.float64) * (unit / 2.0 ** (POWER_BITS + FACTOR_BITS))
            self._mine.hear(bus, prices, is_pull=task.kind == PULL)

    # -- acting ---------------------------------------------------------------------------------

    def _act(self) -> list[Effect]:
        """Do what the present task asks of the sites."""
        task = self.course.task
        if task.kind == DONE:
            self._is_over = True
            outcome = self._outcome()
            return [Persist(outcome), Decide(outcome)]
        if not self._mine.own:
            return []
        if task.kind == WISH:
            if task.iteration == 2:
                self._begin_warm()
            if task.iteration > 1:
                return self._send_wish() if self._mine.is_stepped else [self._answer()]
            if self._is_warm:
                return [self._answer()]
            mine = self._mine
            nothing = np.zeros_like(mine.price_p)
            own = (mine.alone_steps, mine.price_p, mine.price_q, nothing, nothing)
            return [Compute((_ANSWERED, self._job), near, own)]
        if task.kind == ANSWER:
            if task.iteration == 1:
                return self._send_answer()
            return [self._answer()]
        if task.kind == PULL:
            return []
        if task.kind == SURPLUS:
            sites = [free_of_cost(site) for site in self._mine.members]
            relief = (sites, self._mine.pull_p, self._mine.pull_q)
            return [Compute((_CHEAPEST, self._job), cheapest, relief)]
        if task.kind == CHALLENGE:
            asked = (self._mine.members, *self._moved_prices())
            return [Compute((_CHEAPEST, self._job), cheapest, asked)]
        if task.kind in (REGRET, CERTIFICATE) and self._cheapest is None:
            agreed = (self._mine.members, self._mine.price_p.copy(), self._mine.price_q.copy())
            return [Compute((_CHEAPEST, self._job), cheapest, agreed)]
        return self._send_proof()

    def _begin_warm(self) -> None:
        """Go on from where the last day or a refused plan ended, once, as after a loss."""
        start, self._start = self._start, None
        if start is not None and start.own == self._mine.own:
            self._mine.restore(start.values)

    def stand(self) -> Wished:
        """Return where the sites stand: secret like their data."""
        return Wished(self._mine.own, self._mine.state())

    def _answer(self) -> Compute:
        mine = self._mine
        arguments = (mine.steps, mine.price_p, mine.price_q, *mine.targets)
        return Compute((_ANSWERED, self._job), near, arguments)

    def _on_computed(self, value: SiteAnswer | Cheapest) -> list[Effect]:
        if isinstance(value, SiteAnswer):
            return self._on_answered(value)
        task = self.course.task
        if task.kind == SURPLUS:
            return self._submit(self._mine.reliefs(value), self._name())
        if task.kind == CHALLENGE:
            return self._send_proofs(value, *self._moved_prices())
        self._cheapest = value
        if task.kind == REGRET:
            return self._submit(self._mine.regrets(value), self._name())
        return self._send_proof()

    def _on_answered(self, answer: SiteAnswer) -> list[Effect]:
        task = self.course.task
        self._mine.take(answer.setpoints)
        self._cheapest = None
        if task.iteration > 1:
            self._measure()
        if task.kind == ANSWER:
            return self._send_answer()
        if task.iteration > 1:
            return self._send_wish()
        if self._is_warm:
            self._is_warm = False
            self._measure()
            self._mine.wish_plainly()
        else:
            self._mine.wish_first()
        return self._send_wish()

    def _measure(self) -> None:
        self._mine.measure(self.course.settings.relaxation)

    def _products(self) -> list[list[int]]:
        """Return each site's products that the present message carries, in steps."""
        if not self.course.product_count:
            return [[] for _ in self._mine.own]
        is_due = self.course.task.kind == ANSWER and self.course.rule.is_due
        return self._mine.products(is_due=is_due)

    def _send_wish(self) -> list[Effect]:
        iteration = self.course.task.iteration
        mixture = self.course.mixture if iteration > 1 else None
        wishes = self._mine.next_wishes(
            self._products(), mixture, is_balanced=self.course.is_balanced
        )
        kept: list[Effect] = []
        if iteration % WISHES_KEPT_INTERVAL == 0:
            kept.append(Persist(Wished(self._mine.own, self._mine.state())))
        return [*kept, *self._submit(wishes, self._name())]

    def _name(self) -> str:
        task = self.course.task
        return f"{task.kind} {task.number}"

    def _send_answer(self) -> list[Effect]:
        return self._submit(self._mine.answers(self._products()), self._name())

    def _moved_prices(self) -> tuple[Floats, Floats]:
        register = self.course.registers[self.course.task.iteration - 1]
        return self._mine.moved_prices(register)

    def _send_proof(self) -> list[Effect]:
        found = self._cheapest
        invariant(found is not None, "the cheapest answers are known")
        agreement, task = self.agreement, self.course.task
        kept = Persist(Proved(agreement.attempt, task.number, self._outcome()))
        sent = self._send_proofs(found, self._mine.price_p, self._mine.price_q)  # type: ignore[arg-type]
        return [kept, *sent]

    def _send_proofs(self, found: Cheapest, price_p: Floats, price_q: Floats) -> list[Effect]:
        return self._submit(self._mine.proofs(found, price_p, price_q), self._name())

    def salts(self) -> dict[int, bytes]:
        """Return each site's salt of commitments on this day, from its own key [sealed 6.5]."""
        return {bus: keys.salt(self.agreement.day, bus) for bus, keys in self._keys.items()}

    def _outcome(self) -> SiteOutcome:
        mine = self._mine
        return SiteOutcome(
            setpoints=_octets(mine.own, mine.setpoints),
            payments=self._payments,
            own_costs=self._own_costs,
            price_p=_octets(mine.own, mine.price_p),
            price_q=_octets(mine.own, mine.price_q),
            public=self.course.outcome(),
        )
