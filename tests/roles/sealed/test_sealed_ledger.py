"""A sealed day of a deployment on its ledger: one lying party records nothing false."""

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from veilgrid.grid.lindistflow import Limits
from veilgrid.ledger.export import check_export
from veilgrid.ledger.operation import ProposeIteration
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
from veilgrid.mpc.client import submit_with_seeds
from veilgrid.mpc.message import Submission
from veilgrid.roles.ledger_message import Seated
from veilgrid.roles.ledger_seat import Agreement
from veilgrid.roles.ledger_validator import Validator
from veilgrid.roles.sealed.believed import WORDS
from veilgrid.roles.sealed.day import PAYER_NODE, SETTINGS, SITES, PublicDay
from veilgrid.roles.sealed.heard import BID
from veilgrid.roles.sealed.heard import client_of as party_client
from veilgrid.roles.sealed.keys import SiteKeys
from veilgrid.roles.sealed.ledger import (
    RecordingSites,
    SealedOperator,
    SealedValidator,
    TellingParty,
)
from veilgrid.roles.sealed.ledger_message import (
    KEPT,
    PLEDGE_DOMAIN,
    WIRE,
    Openings,
    Pledge,
    Pledges,
    Recorded,
    Word,
    Words,
    is_genuine,
    pledged,
)
from veilgrid.roles.sealed.message import Stopped
from veilgrid.roles.sealed.payer import Payer, PayerRecord
from veilgrid.roles.sealed.paying import AS_PAID, NOT_SHOWN, OTHERWISE, PayingOperator
from veilgrid.roles.sealed.record import commitment_of, verdict_of
from veilgrid.roles.sealed.sites import SiteGroup
from veilgrid.roles.sealed.sites_kept import Proved, SiteOutcome
from veilgrid.secret import Secret, SeededRandomness
from veilgrid.signature import Signer

from .sealed_days import cast_for, small

DAY = small(1).day()
LIMITS = Limits.of(DAY.network)
VALIDATORS = tuple(f"validator-{k}" for k in (1, 2, 3, 4))
OPERATOR = PAYER_NODE
FALSE = b"f" * 32
Meddle = Callable[[NodeId, NodeId, Any], Any]
SIGNERS = {
    name: Signer(Secret(bytes([k]) * 32))
    for k, name in enumerate(("sites", OPERATOR, *VALIDATORS), 1)
}


def agreement() -> Agreement:
    names = tuple(str(site.name) for site in DAY.sites)
    keys = {name: signer.verify_key for name, signer in SIGNERS.items()}
    return Agreement(
        day="small",
        operator=OPERATOR,
        validators=VALIDATORS,
        workers=(),
        buses=names,
        flexible=tuple(DAY.flexible),
        groups=dict.fromkeys(names, "sites"),
        keys=keys,
    )


@dataclass
class World:
    """All machines of a day with a ledger; messages in order, timers when nothing else is left."""

    meddle: Meddle = lambda _sender, _to, message: message
    outcomes: dict[NodeId, list[Any]] = field(default_factory=dict)
    journals: dict[NodeId, list[Any]] = field(default_factory=dict)
    queue: "deque[tuple[NodeId, Event]]" = field(default_factory=deque)
    timers: dict[tuple[NodeId, str], int] = field(default_factory=dict)
    now_ns: int = 0

    def __post_init__(self) -> None:
        cast, told = cast_for(DAY, LIMITS), agreement()
        self.cast, self.parties = cast, cast.group.agreement.parties
        self.group, self.told = cast.group, told
        self.public = PublicDay.of(DAY, LIMITS, SETTINGS)
        self.machines: dict[NodeId, Any] = {
            name: TellingParty(cast.machines[name], told)  # type: ignore[arg-type]
            for name in self.parties
        }
        self.machines[SITES] = RecordingSites(SITES, cast.group, told, SIGNERS["sites"], [])
        for name in (OPERATOR, *map(NodeId, VALIDATORS)):
            self.machines[name] = self.recorder(name)
        self.queue.extend((name, TimerFired(START)) for name in self.machines)

    def recorder(self, name: NodeId) -> Any:
        kept = self.journals.get(name, [])
        words, signer = Words("small", self.parties, 1, kept), SIGNERS[name]
        if name == OPERATOR:
            own = [one for one in kept if isinstance(one, PayerRecord)]
            agreement, randomness = self.group.agreement, SeededRandomness(5)
            keys = {"signer": self.cast.machines[PAYER_NODE]._signer, "randomness": randomness}
            payer = Payer(name, agreement, self.public.register.unit, records=own, **keys)
            others = [one for one in kept if not isinstance(one, PayerRecord)]
            recorder = SealedOperator(name, self.told, words, signer, others)
            return PayingOperator(payer, recorder, self.told, others)
        own = [one for one in kept if not isinstance(one, KEPT)]
        inner = Validator(name, self.told, self.public, signer, own, tells_all=False)
        return SealedValidator(inner, self.told, words, kept)

    def sites(self) -> RecordingSites:
        kept, former = self.journals.get(SITES, []), self.group
        self.group = SiteGroup(
            SITES,
            cast_for(DAY, LIMITS).group.agreement,
            self.public.course(),
            former._sites,
            former._alone,
            keys=former._keys,
            randomness=SeededRandomness(6),
            executor=former._executor,
            records=[one for one in kept if not isinstance(one, Seated)],
        )
        return RecordingSites(SITES, self.group, self.told, SIGNERS["sites"], kept)

    def restart(self, name: NodeId) -> None:
        self.timers = {key: at for key, at in self.timers.items() if key[0] != name}
        self.machines[name] = self.sites() if name == SITES else self.recorder(name)
        self.queue.append((name, TimerFired(START)))

    def step(self) -> bool:
        if not self.queue:
            if not self.timers:
                return False
            self.now_ns = min(self.timers.values())
            for key in [key for key, at in self.timers.items() if at == self.now_ns]:
                del self.timers[key]
                self.queue.append((key[0], TimerFired(key[1])))
        name, event = self.queue.popleft()
        for effect in self.machines[name].handle(event):
            match effect:
                case Send(to, message):
                    shown = self.meddle(name, to, message)
                    if shown is not None:
                        self.queue.append((to, Received(name, shown)))
                case SetTimer(timer, delay_ns):
                    self.timers[name, timer] = self.now_ns + delay_ns
                case Compute(job, kernel, arguments):
                    self.queue.append((name, Computed(job, kernel(*arguments))))
                case Persist(record):
                    self.journals.setdefault(name, []).append(record)
                case Decide(outcome):
                    self.outcomes.setdefault(name, []).append(outcome)
        return True

    def recorded(self, name: str) -> Recorded | None:
        said = [one for one in self.outcomes.get(NodeId(name), []) if isinstance(one, Recorded)]
        return said[-1] if said else None

    def run(self, names: Sequence[str] = VALIDATORS, steps: int = 60_000) -> None:
        for _ in range(steps):
            if all(self.recorded(name) for name in names) or not self.step():
                return

    @property
    def word(self) -> Word:
        agreed = self.machines[NodeId("validator-1")].words.agreed
        assert agreed is not None
        return agreed


def octets_of(export: bytes) -> bytes:
    """Return all records of an accepted export."""
    checked = check_export(export, "ledger.json", agreement().genesis.digest())
    assert not checked.problems
    return b"".join(bytes.fromhex(one) for one in msgspec.json.decode(export)["records"])


def test_every_validator_exports_what_an_outsider_accepts() -> None:
    """And no payment stands in it: only a commitment that its site can open."""
    world = World()
    world.run((*VALIDATORS, OPERATOR, "sites"))
    exports = [world.recorded(name) for name in VALIDATORS]
    digests = set()
    for one in exports:
        assert one is not None
        assert one.public["status"] == "closed"
        octets = octets_of(one.export)
        digests.add(hashlib.sha256(octets).digest())
        assert world.word.opened in octets
        assert all(digest in octets for digest in world.word.bids.values())
    assert len(digests) == 1
    found = next(one for one in world.outcomes[SITES] if isinstance(one, SiteOutcome))
    names = [str(site.name) for site in DAY.sites]
    salts = world.group.salts()
    amounts = {names[bus]: round(1e6 * paid) for bus, paid in found.payments.items()}
    leaves = [
        commitment_of(name, amounts[name], salts[names.index(name)]) for name in sorted(names)
    ]
    assert hashlib.sha256(b"".join(leaves)).digest() in octets
    told = world.recorded("sites")
    assert told is not None
    assert (told.public["is_recorded"], told.public["unrecorded"]) == (True, [])
    assert world.word.bids == {names[bus]: d for bus, d in world.group.bid_digests.items()}


def lied(word: Word) -> Word:
    return msgspec.structs.replace(word, opened=FALSE, excluded=["a"])


@pytest.mark.parametrize("order", [0, 1, 2])
def test_one_party_alone_does_not_get_a_false_record(order: int) -> None:
    """Whether it speaks first or last: a word counts when degree + 1 say it."""
    spoke: list[NodeId] = []

    def meddle(sender: NodeId, _to: NodeId, message: Any) -> Any:
        if not isinstance(message, Word):
            return message
        if sender not in spoke:
            spoke.append(sender)
        return lied(message) if spoke.index(sender) == order else message

    world = World(meddle)
    world.run()
    for name in VALIDATORS:
        found = world.recorded(name)
        assert found is not None
        octets = octets_of(found.export)
        assert FALSE not in octets
        assert world.word.opened in octets
        assert b"Absent" not in octets


def test_more_parties_than_the_degree_can_lie() -> None:
    """The control: what the test above would miss if a lie could not be recorded at all."""

    def meddle(sender: NodeId, _to: NodeId, message: Any) -> Any:
        is_liar = sender in ("party-1", "party-3") and isinstance(message, Word)
        return lied(message) if is_liar else message

    world = World(meddle)
    world.run()
    found = world.recorded("validator-1")
    assert found is not None
    assert FALSE in octets_of(found.export)


def test_an_operator_does_not_get_a_false_record() -> None:
    """It proposes; validators accept what the parties said, and nothing else."""

    def meddle(_sender: NodeId, to: NodeId, message: Any) -> Any:
        is_heard = to == OPERATOR and isinstance(message, Word)
        return msgspec.structs.replace(message, opened=FALSE) if is_heard else message

    world = World(meddle)
    world.run()
    found = world.recorded("validator-1")
    assert found is not None
    assert found.public["status"] == "refused"


class FalseAtLast(SealedOperator):
    """Proposes payments that nobody pledged."""

    def _propose(self, proposal: ProposeIteration) -> list[Effect]:
        changed = {"digest": FALSE} if proposal.is_last else {}
        return super()._propose(msgspec.structs.replace(proposal, **changed))


def test_an_operator_does_not_get_other_payments_recorded() -> None:
    world = World()
    world.machines[OPERATOR].recorder.__class__ = FalseAtLast
    world.run()
    found = world.recorded("validator-1")
    assert found is not None
    assert found.public["status"] == "refused"


def test_an_operator_cannot_pledge_for_a_site() -> None:
    """It would put a commitment of its own where the site's belongs."""

    def meddle(sender: NodeId, _to: NodeId, message: Any) -> Any:
        if sender != OPERATOR or not isinstance(message, Pledges):
            return message
        own = [msgspec.structs.replace(one, commitment=FALSE) for one in message.pledges]
        return Pledges(message.day, own)

    world = World(meddle)
    world.run(steps=6_000)
    assert world.recorded("validator-1") is None


def test_a_site_that_writes_another_digest_than_its_bid_has_is_taken_out_of_the_record() -> None:
    """Else its own entry could contradict what all parties agreed on."""
    world = World()
    digests = world.group.bid_digests

    def meddle(_sender: NodeId, _to: NodeId, message: Any) -> Any:
        if isinstance(message, Word):
            digests[2] = FALSE
        return message

    world.meddle = meddle
    world.run()
    found = world.recorded("validator-1")
    assert found is not None
    assert found.public["status"] == "closed"
    view = world.machines[NodeId("validator-1")].view
    assert view.excluded == {"site:b": "absent"}


def test_a_site_that_commits_otherwise_to_each_party_does_not_stop_the_record() -> None:
    """Parties agree that no bid of it counts, so their words must not hold what each has of it."""
    world = World()
    group, client = world.group, party_client(2, BID)

    def meddle(_sender: NodeId, to: NodeId, message: Any) -> Any:
        if not isinstance(message, Submission) or message.client != client:
            return message
        return submit_with_seeds(
            message.session,
            client,
            [0] * (len(message.correction) // 16),
            degree=1,
            box_keys=group.agreement.box_keys,
            signer=group._keys[2].signer,
            randomness=SeededRandomness(int(to[-1])),
        )[0]

    world.meddle = meddle
    world.run()
    found = world.recorded("validator-1")
    assert found is not None
    assert found.public["status"] == "closed"
    assert "b" not in world.word.bids
    assert world.machines[NodeId("validator-1")].view.excluded == {"site:b": "absent"}


def test_who_shows_what_one_site_pays_shows_nobody_elses() -> None:
    """Sites of one process have one key: with one salt, whoever opens one payment opens all."""
    world = World()
    key = SiteKeys(SIGNERS["sites"], Secret(b"s" * 32))
    world.group._keys = dict.fromkeys(range(len(DAY.sites)), key)
    salts = world.group.salts()
    assert len(set(salts.values())) == len(salts) == len(DAY.sites)


@pytest.mark.parametrize("length", [0, 31, 64])
def test_a_commitment_that_is_no_digest_is_not_pledged(length: int) -> None:
    """Digests are recorded one behind the other: where each ends must not be a site's choice."""
    plain = pledged("small", "a", 7, b"salt", SIGNERS["sites"])
    assert is_genuine(plain, agreement())
    other = msgspec.structs.replace(plain, commitment=bytes(length))
    payload = msgspec.msgpack.encode((other.day, other.site, other.commitment))
    signature = SIGNERS["sites"].sign(PLEDGE_DOMAIN, payload)
    assert not is_genuine(msgspec.structs.replace(other, signature=signature), agreement())


def test_a_plan_that_the_power_flow_refuses_is_not_accepted() -> None:
    """Validators would vote for a plan that must not be carried out."""
    sound = {"low": [], "high": [], "over": [], "moving": 0}
    opened = {"is_close": True, "failed": [0, 0], "gap": 0.1, "electrical": sound}
    assert verdict_of(opened) == (0.1, True)
    for name, places in (("low", [[1, 0]]), ("high", [[1, 0]]), ("over", [[1, 0]]), ("moving", 2)):
        assert verdict_of({**opened, "electrical": {**sound, name: places}}) == (0.1, False)
    assert verdict_of({**opened, "electrical": {}}) == (0.1, False)


def test_a_site_that_pledges_nothing_does_not_stop_the_record() -> None:
    def meddle(sender: NodeId, _to: NodeId, message: Any) -> Any:
        if sender == SITES and isinstance(message, Pledges):
            return Pledges(message.day, [one for one in message.pledges if one.site != "c"])
        return message

    world = World(meddle)
    world.run()
    found = world.recorded("validator-1")
    assert found is not None
    assert found.public["status"] == "closed"
    assert world.machines[NodeId("validator-1")].view.excluded == {"site:c": "absent"}


@pytest.mark.parametrize(
    ("blamed", "named"),
    [
        (["party-2", "party-2", "party-2"], ["party-2"]),
        (["party-2", "party-1", "party-2"], ["party-2"]),
        (["party-2", "party-1", ""], []),
    ],
)
def test_the_operator_of_a_day_that_stopped_is_told_by_whom(
    blamed: list[str], named: list[str]
) -> None:
    """Its record ends without a name, and must not hide the one that the payer hears."""
    world = World()
    operator, day = world.machines[OPERATOR], world.group.agreement.day
    effects: list[Effect] = []
    for party, name in zip(world.parties, blamed, strict=True):
        if name:
            effects += operator.handle(Received(party, Stopped(day, 3, "cheated", [name])))
        effects += operator.handle(Received(party, Word.without_result("small")))
    effects += operator.handle(TimerFired(WORDS))
    ends = [one.outcome for one in effects if isinstance(one, Decide)]
    assert [one.culprits for one in ends if isinstance(one, Stopped)] == [named]
    assert len(ends) == 1


class Hasty(SealedOperator):
    """Ends bidding when one site has written."""

    def _close_bids(self, word: Word) -> list[Effect]:
        self._are_bids_late = True
        return super()._close_bids(word)


def test_a_site_that_the_operator_did_not_wait_for_is_told() -> None:
    """The record has it as absent, although it bid in time and pays."""
    world = World()
    world.machines[OPERATOR].recorder.__class__ = Hasty
    held: list[tuple[NodeId, Any]] = []

    def meddle(sender: NodeId, to: NodeId, message: Any) -> Any:
        is_late = sender == SITES and getattr(message, "client", "") == "site:c"
        if is_late and not world.recorded("validator-1"):
            held.append((to, message))
            return None
        return message

    world.meddle = meddle
    world.run((*VALIDATORS, "sites"))
    assert held
    assert world.machines[NodeId("validator-1")].view.excluded == {"site:c": "no bid"}
    told = world.recorded("sites")
    assert told is not None
    assert (told.public["is_recorded"], told.public["unrecorded"]) == (True, ["c"])


def accounts(world: World) -> dict[str, tuple[float, str]]:
    told = world.machines[OPERATOR].accounts()
    return {one["site"]: (one["payment"], one["pledge"]) for one in told}


def test_the_operator_hears_all_payments_and_that_they_are_those_pledged() -> None:
    world = World()
    world.run((*VALIDATORS, OPERATOR, "sites"))
    found = next(one for one in world.outcomes[SITES] if isinstance(one, SiteOutcome))
    names = [str(site.name) for site in DAY.sites]
    assert accounts(world) == {names[b]: (paid, AS_PAID) for b, paid in found.payments.items()}


@pytest.mark.parametrize("lie", [OTHERWISE, NOT_SHOWN])
def test_a_site_that_pledges_another_amount_is_told_to_the_operator(lie: str) -> None:
    """Validators record what they cannot open; the payer can, and compares."""

    def meddle(sender: NodeId, _to: NodeId, message: Any) -> Any:
        if sender != SITES:
            return message
        if isinstance(message, Openings) and lie == NOT_SHOWN:
            return Openings(message.day, {k: v for k, v in message.salts.items() if k != "b"})
        if isinstance(message, Pledges) and lie == OTHERWISE:
            salt = world.group.salts()[2]
            other = pledged(message.day, "b", 7, salt, SIGNERS["sites"])
            own = [other if one.site == "b" else one for one in message.pledges]
            return Pledges(message.day, own)
        return message

    world = World(meddle)
    world.run((*VALIDATORS, OPERATOR))
    assert {site: pledge for site, (_, pledge) in accounts(world).items() if pledge != AS_PAID} == {
        "b": lie
    }


@pytest.mark.parametrize("after", ["Word", "Pledges", "Bid"])
def test_operator_and_validators_that_start_again_finish_the_record(after: str) -> None:
    """What they heard beside the ledger is asked for again."""
    seen: list[str] = []

    def meddle(_sender: NodeId, _to: NodeId, message: Any) -> Any:
        seen.append(type(message).__name__)
        return message

    world = World(meddle)
    while not (after in seen or (after == "Bid" and world.machines[OPERATOR].recorder.view.bids)):
        assert world.step()
    for _ in range(40):
        world.step()
    for name in (OPERATOR, NodeId("validator-1"), NodeId("validator-2")):
        world.restart(name)
    world.run((*VALIDATORS, OPERATOR))
    assert {pledge for _, pledge in accounts(world).values()} == {AS_PAID}
    for name in VALIDATORS:
        found = world.recorded(name)
        assert found is not None
        assert found.public["status"] == "closed"
        octets_of(found.export)


@pytest.mark.parametrize("after", [Proved, SiteOutcome, Seated])
def test_sites_that_start_again_pledge_what_they_would_have(after: type) -> None:
    """Before they heard what they pay, before they told anybody, while they write."""
    world = World()
    while not any(isinstance(one, after) for one in world.journals.get(SITES, [])):
        assert world.step()
    # What they would have said in this step, and what is under way to them, is lost with them.
    queue = [one for one in world.queue if one[0] != SITES]
    lost = [one for one in queue if getattr(one[1], "sender", "") == SITES]
    world.queue.clear()
    world.queue.extend(one for one in queue if one not in lost)
    world.restart(SITES)
    world.run((*VALIDATORS, OPERATOR, "sites"))
    found = next(one for one in world.outcomes[SITES] if isinstance(one, SiteOutcome))
    names = [str(site.name) for site in DAY.sites]
    assert accounts(world) == {names[b]: (paid, AS_PAID) for b, paid in found.payments.items()}
    told = world.recorded("sites")
    assert told is not None
    assert (told.public["is_recorded"], told.public["unrecorded"]) == (True, [])


def test_what_is_said_of_another_day_counts_in_none() -> None:
    """Yesterday's pledge is genuine, under the same key; so is what parties said then."""
    told, words = agreement(), Words("small", [NodeId("party-1"), NodeId("party-2")], 1)
    own = pledged("small", "a", 7, b"salt", SIGNERS["sites"])
    assert is_genuine(own, told)
    former = pledged("small run 0", "a", 7, b"salt", SIGNERS["sites"])
    for other in (
        former,
        msgspec.structs.replace(former, day="small"),
        msgspec.structs.replace(own, site="b"),
        msgspec.structs.replace(own, site="nobody"),
        pledged("small", "a", 7, b"salt", SIGNERS[OPERATOR]),
    ):
        assert not is_genuine(other, told)
    word = Word("small run 0", {}, [], FALSE, 0.0, is_accepted=True)
    for party in words.parties:
        assert words.take(party, word) == []
    today = msgspec.structs.replace(word, day="small")
    assert words.take(words.parties[0], today) == []
    assert words.take(words.parties[0], today) == []
    assert words.take(NodeId("sites"), today) == []
    assert words.agreed is None
    assert words.take(words.parties[1], today) == [Persist(today)]


def test_a_record_is_finished_although_parties_and_sites_have_gone_for_good() -> None:
    """What they said beside the ledger was heard once; nobody is left to say it again."""
    world = World()
    recorders = [OPERATOR, *map(NodeId, VALIDATORS)]
    while not all(len(world.machines[name].view.bids) == len(DAY.sites) for name in recorders[1:]):
        assert world.step()
    assert len(world.machines[OPERATOR].recorder.pledges) == len(DAY.sites)
    assert not any(world.recorded(name) for name in recorders)
    world.queue.clear()
    world.timers.clear()
    for name in (*world.parties, SITES):
        world.machines[name] = Gone()
    for name in recorders:
        world.restart(name)
    world.run((*VALIDATORS, OPERATOR))
    for name in VALIDATORS:
        found = world.recorded(name)
        assert found is not None
        assert found.public["status"] == "closed"
    assert {pledge for _, pledge in accounts(world).values()} == {AS_PAID}


def test_validators_that_start_again_miss_nobody_whose_pledge_they_heard() -> None:
    """After a power cut the operator may be back last: all sites would be recorded as absent."""
    world = World()
    recorders = [NodeId(name) for name in VALIDATORS]

    def is_ready(name: NodeId) -> bool:
        machine = world.machines[name]
        return machine.view.iteration == 2 and len(machine._heard) == len(DAY.sites)

    world.meddle = lambda sender, _to, message: (
        None if sender == OPERATOR and isinstance(message, Pledges) else message
    )
    while not all(is_ready(name) for name in recorders):
        assert world.step()
    world.meddle = lambda _sender, _to, message: message
    world.queue.clear()
    world.timers.clear()
    for name in (*world.parties, SITES, OPERATOR):
        world.machines[name] = Gone()
    for name in recorders:
        world.restart(name)
    until = world.now_ns + 2 * agreement().patience.site_ns
    while world.now_ns < until:
        assert world.step()
    world.restart(OPERATOR)
    world.run((*VALIDATORS, OPERATOR))
    assert world.machines[recorders[0]].view.excluded == {}
    assert all(world.recorded(name) for name in recorders)
    assert {pledge for _, pledge in accounts(world).values()} == {AS_PAID}


class Gone:
    def handle(self, _event: Event) -> list[Effect]:
        return []


def test_what_crosses_the_links_can_be_told_apart() -> None:
    """Two messages of one name would be taken for each other."""
    word = Word("small", {"a": FALSE}, [], FALSE, 0.0, is_accepted=True)
    for message in (word, Pledges("small", [Pledge("small", "a", FALSE, b"s")])):
        octets = msgspec.msgpack.encode(message)
        assert msgspec.msgpack.decode(octets, type=WIRE) == message
