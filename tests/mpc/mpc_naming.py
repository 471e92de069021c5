"""Seeded trials of signed parties of whom some deviate: who is named? Run as a script for many.

    python tests/mpc/mpc_naming.py --trials 100000
    python tests/mpc/mpc_naming.py --first-seed 4711 --trials 1       replays one, and tells of it

Whole parties (:class:`veilgrid.mpc.party.Party`) exchange messages in any order; up to ``degree``
of them deviate in what they compute, say in any round, testify, find or alarm (``mpc_deviant.py``).
Every message of an honest party arrives. Then, with any number of corrupt parties,

1. no honest party accepts a wrong result;
2. whoever is named, as a cheater or as silent, is corrupt;
3. every honest party that has no result names somebody.

Beyond half of the parties (linear functions) 1 and 3 hold for as many as leave an honest member in
every set [mpc 8.4]. Signatures are keyed hashes in place of ed25519: ten times as quick, and as
unforgeable here as nobody uses another's key.
"""

import argparse
import hashlib
import hmac
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import msgspec
from mpc_committee import names_of
from mpc_deviant import Deviant
from nacl.public import PrivateKey, SealedBox

from veilgrid.machine import START, Decide, NodeId, Received, Send, SetTimer, TimerFired
from veilgrid.mpc import client as client_module
from veilgrid.mpc import engine as engine_module
from veilgrid.mpc._shares import concatenate
from veilgrid.mpc.client import Enrolled, Mailbox, submit
from veilgrid.mpc.form import number, number_bits
from veilgrid.mpc.intake import intake
from veilgrid.mpc.message import Aborted, Finished, Submission
from veilgrid.mpc.party import Party
from veilgrid.secret import Secret, SeededRandomness
from veilgrid.signature import canonical

STEP_MAX = 50_000
INPUTS = {"ada": 19, "bob": 23}
FORM = number(0, 31)
_SECRETS: dict[bytes, bytes] = {}


class HashSigner:
    """A keyed hash in place of ed25519."""

    def __init__(self, name: str) -> None:
        self._secret = hashlib.sha256(b"naming" + name.encode()).digest()
        self.verify_key = hashlib.sha256(self._secret).digest()
        _SECRETS[self.verify_key] = self._secret

    def sign(self, domain: str, payload: bytes) -> bytes:
        return hmac.digest(self._secret, canonical(domain, payload), "sha512")


def hash_verify(key: bytes, domain: str, payload: bytes, signature: bytes) -> bool:
    tag = hmac.digest(_SECRETS[key], canonical(domain, payload), "sha512")
    return hmac.compare_digest(tag, signature)


SIGNERS = {name: HashSigner(name) for name in (*names_of(7), *INPUTS, "eve")}
KEYS = {name: signer.verify_key for name, signer in SIGNERS.items()}
BOXES = [PrivateKey(hashlib.sha256(name.encode()).digest()) for name in names_of(7)]


# -- what is computed -----------------------------------------------------------


def linear(mpc: Any, _: Mailbox | None) -> Any:
    hidden = mpc.wrap(mpc.uniform(2), 2**100)
    return (yield from mpc.open(hidden - hidden + mpc.constant([5, 7])))


def product(mpc: Any, _: Mailbox | None) -> Any:
    x = yield from mpc.multiply(mpc.constant([3, -2]), mpc.constant([5, 7]))
    return (yield from mpc.open((yield from mpc.multiply(x, x))))


def inner(mpc: Any, _: Mailbox | None) -> Any:
    x = yield from mpc.multiply(mpc.constant(range(9)), mpc.constant([2]))
    total = yield from mpc.inner(x, x)
    yield from mpc.check()
    cube = yield from mpc.multiply(total, x)
    return (yield from mpc.open(cube))


def compare(mpc: Any, _: Mailbox | None) -> Any:
    x = yield from mpc.multiply(mpc.constant([3, -3]), mpc.constant([1]))
    return (yield from mpc.open((yield from mpc.is_negative(x))))


def clients(mpc: Any, mailbox: Mailbox | None) -> Any:
    assert mailbox is not None
    batch = yield from intake(mpc, mailbox, 1)
    values = concatenate(batch.values.values())
    square = yield from mpc.inner(values, values)
    opened = yield from mpc.open(concatenate([values.sum(), square]))
    return [batch.clients, *opened]


RIGHT: dict[Callable[..., Any], list[Any]] = {
    linear: [5, 7],
    product: [225, 196],
    inner: [816 * 2 * k for k in range(9)],
    compare: [0, 1],
    clients: [["ada", "bob"], 42, 19 * 19 + 23 * 23],
}
ROUNDS = {linear: 5, product: 13, inner: 20, compare: 28, clients: 20}
"""About how many rounds each takes; deviations are drawn within."""

WORK = ((linear, 24), (product, 58), (inner, 8), (clients, 9), (compare, 1))
SIZES = ((3, 1), (4, 1), (5, 2), (6, 2), (7, 3))
BEYOND_HALF = ((4, 2), (5, 3), (6, 3), (7, 4))


@dataclass(frozen=True, slots=True)
class Case:
    """One trial."""

    seed: int
    n: int
    degree: int
    function: Callable[..., Any]
    corrupt: frozenset[int]
    king_words: int
    eve: str


def case_of(seed: int) -> Case:
    """Draw a trial; most take the smallest committee, every kind appears."""
    rng = random.Random(seed)
    function = rng.choices([one for one, _ in WORK], [weight for _, weight in WORK])[0]
    if function is linear and rng.random() < 0.4:
        n, degree = rng.choices(BEYOND_HALF, (60, 30, 5, 5))[0]
        corrupt_max = min(degree, n - degree - 1)
    else:
        few = (86, 6, 6, 1, 1) if function is not compare else (90, 5, 5, 0, 0)
        n, degree = rng.choices(SIZES, few)[0]
        corrupt_max = degree
    corrupt = frozenset(rng.sample(range(1, n + 1), rng.randint(1, corrupt_max)))
    king_words = 4 if rng.random() < 0.2 else engine_module.KING_WORDS
    eve = rng.choice(EVE) if function is clients else ""
    return Case(seed, n, degree, function, corrupt, king_words, eve)


# -- one trial ------------------------------------------------------------------


EVE = ("", "", "honest", "not bits", "no seeds", "other seeds", "to some", "two", "silent")
"""What a third client does; mostly there is none."""


def _submission(case: Case, session: bytes, client: str, bits: list[int], seed: int) -> Submission:
    return submit(
        session,
        client,
        bits,
        degree=case.degree,
        box_keys=[bytes(box.public_key) for box in BOXES[: case.n]],
        signer=SIGNERS[NodeId(client)],
        randomness=SeededRandomness(16 * case.seed + seed),
    )


def _submissions(case: Case, session: bytes) -> list[list[Submission]]:
    """Return what each party gets of clients."""
    if case.function is not clients:
        return [[] for _ in range(case.n)]
    sent = [
        _submission(case, session, client, number_bits(FORM, value), value)
        for client, value in INPUTS.items()
    ]
    out = [list(sent) for _ in range(case.n)]
    if case.eve in ("", "silent"):
        return out
    rng = random.Random(case.seed + 2)
    chosen = rng.randrange(case.n)
    bits = number_bits(FORM, 7)
    eve = _submission(case, session, "eve", [3, *bits[1:]] if case.eve == "not bits" else bits, 7)
    if case.eve in ("no seeds", "other seeds"):
        boxes = list(eve.boxes)
        length = len(boxes[chosen]) - 48
        nonsense = SealedBox(BOXES[chosen].public_key).encrypt(rng.randbytes(length))
        boxes[chosen] = nonsense if case.eve == "other seeds" else rng.randbytes(length + 48)
        plain = msgspec.structs.replace(eve, boxes=boxes)
        signature = SIGNERS[NodeId("eve")].sign(client_module.DOMAIN, client_module._payload(plain))
        eve = msgspec.structs.replace(plain, signature=signature)
    other = _submission(case, session, "eve", number_bits(FORM, 9), 9)
    for place, received in enumerate(out):
        if case.eve != "to some" or place != chosen:
            received.append(other if case.eve == "two" and place == chosen else eve)
    return out


def is_right(case: Case, result: Any) -> bool:
    """Return whether this may be accepted: eve's number counts or not, and it is one of hers."""
    if case.function is not clients or result[0] == ["ada", "bob"]:
        return bool(result == RIGHT[case.function]) and case.eve != "honest"
    return result[0] == ["ada", "bob", "eve"] and any(
        result[1:] == [42 + value, 890 + value * value] for value in (7, 9)
    )


def party_of(case: Case, number: int, session: bytes, submissions: list[Submission]) -> Party:
    """Return an honest party of a trial."""
    names = names_of(case.n)
    mailbox = None
    if submissions:
        known = [*INPUTS, "eve"] if case.eve else INPUTS
        enrolled = {client: Enrolled(KEYS[NodeId(client)], FORM) for client in known}
        key = Secret(bytes(BOXES[number - 1]))
        mailbox = Mailbox(number, case.n, case.degree, session, enrolled, key)
        for submission in submissions:
            mailbox.accept(submission)
    return Party(
        names[number - 1],
        names,
        case.degree,
        lambda mpc: case.function(mpc, mailbox),
        signer=SIGNERS[names[number - 1]],
        verify_keys=KEYS,
        randomness=SeededRandomness(8 * case.seed + number),
        mailbox=mailbox,
        session=session,
    )


class Post:
    """Delivers everything, in any order or in order on each link, and keeps the time."""

    def __init__(self, case: Case, machines: dict[NodeId, Any]) -> None:
        self._rng = random.Random(case.seed + 1)
        self._is_ordered = self._rng.random() < 0.5
        self._is_rushed = self._rng.random() < 0.3
        self._corrupt = {names_of(case.n)[place - 1] for place in case.corrupt}
        self._machines = machines
        self._links: dict[tuple[NodeId, NodeId], list[Any]] = {}
        self._timers: dict[tuple[NodeId, str], int] = {}
        self._now_ns = 0
        self.decided: dict[NodeId, Any] = {}

    def run(self) -> None:
        """Run until every honest party has decided."""
        honest = set(self._machines) - self._corrupt
        for name in self._machines:
            self._handle(name, TimerFired(START))
        for _ in range(STEP_MAX):
            if honest <= set(self.decided):
                return
            if not self._links and not self._timers:
                return
            if self._links:
                (sender, to), message = self._next()
                self._handle(to, Received(sender, message))
            else:
                self._tick()

    def _next(self) -> tuple[tuple[NodeId, NodeId], Any]:
        links = list(self._links)
        if self._is_rushed:
            links = [link for link in links if link[0] not in self._corrupt] or links
        link = links[int(self._rng.random() * len(links))]
        queue = self._links[link]
        message = queue.pop(0 if self._is_ordered else int(self._rng.random() * len(queue)))
        if not queue:
            del self._links[link]
        return link, message

    def _tick(self) -> None:
        self._now_ns = min(self._timers.values())
        due = [key for key, at in self._timers.items() if at == self._now_ns]
        self._rng.shuffle(due)
        for name, timer in due:
            if self._timers.get((name, timer)) == self._now_ns:
                del self._timers[name, timer]
                self._handle(name, TimerFired(timer))

    def _handle(self, name: NodeId, event: Any) -> None:
        for effect in self._machines[name].handle(event):
            match effect:
                case Send(to, message) if to in self._machines:
                    self._links.setdefault((name, to), []).append(message)
                case SetTimer(timer, delay_ns):
                    self._timers[name, timer] = self._now_ns + delay_ns
                case Decide(outcome):
                    self.decided[name] = outcome


@contextmanager
def cheap_signatures(king_words: int) -> Any:
    """Check keyed hashes wherever parties check signatures."""
    with (
        mock.patch("veilgrid.mpc.party.verify", hash_verify),
        mock.patch("veilgrid.mpc.client.verify", hash_verify),
        mock.patch.object(engine_module, "KING_WORDS", king_words),
    ):
        yield


class Wrong(AssertionError):
    """What must hold did not."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a trial ended."""

    case: Case
    deviations: dict[str, list[str]]
    outcomes: dict[NodeId, Any]

    @property
    def kind(self) -> str:
        """In a word, for the count."""
        kinds = {
            one.kind if isinstance(one, Aborted) else "right" for one in self.outcomes.values()
        }
        return "+".join(sorted(kinds))


def played(seed: int) -> Result:
    """Play one trial."""
    case = case_of(seed)
    session = b"naming %d" % seed
    names = names_of(case.n)
    with cheap_signatures(case.king_words):
        submissions = _submissions(case, session)
        machines: dict[NodeId, Any] = {}
        deviants: dict[str, Deviant] = {}
        for place, name in enumerate(names, 1):
            party = party_of(case, place, session, submissions[place - 1])
            machines[name] = party
            if place in case.corrupt:
                rng = random.Random(seed * 16 + place)
                machines[name] = deviants[name] = Deviant(party, rng, ROUNDS[case.function])
        post = Post(case, machines)
        post.run()
    outcomes = {name: post.decided.get(name) for name in names if name not in deviants}
    return Result(case, {name: one.done for name, one in deviants.items()}, outcomes)


def judged(result: Result) -> Result:
    """Raise if anything that must hold did not."""
    case = result.case
    corrupt = {str(names_of(case.n)[place - 1]) for place in case.corrupt}
    for name, outcome in result.outcomes.items():
        if isinstance(outcome, Finished):
            if not is_right(case, outcome.result):
                raise Wrong(f"{name} accepted {outcome.result}")
            continue
        if not isinstance(outcome, Aborted):
            raise Wrong(f"{name} decided nothing")
        if not set(outcome.culprits) <= corrupt:
            raise Wrong(f"{name} names {outcome.culprits}, corrupt is {sorted(corrupt)}")
        if not outcome.culprits:
            raise Wrong(f"{name} names nobody: {outcome.reason}")
    return result


def trial(seed: int) -> Result:
    """Play and judge one trial."""
    return judged(played(seed))


def campaign(trials: int, first_seed: int = 0) -> Counter[tuple[str, str]]:
    """Run trials; return how many ended how, by the first deviation."""
    counts: Counter[tuple[str, str]] = Counter()
    for seed in range(first_seed, first_seed + trials):
        try:
            result = trial(seed)
        except Exception as error:
            error.add_note(f"replay: python tests/mpc/mpc_naming.py --first-seed {seed} --trials 1")
            raise
        first = next((one[0] for one in result.deviations.values() if one), "nothing yet")
        counts[first.partition(":")[0], result.kind] += 1
    return counts


def told(result: Result) -> str:
    """Return the story of one trial."""
    case = result.case
    lines = [
        f"seed {case.seed}: {case.function.__name__}, {case.n} parties, degree {case.degree}, "
        f"kings from {case.king_words} words{f', eve: {case.eve}' if case.eve else ''}"
    ]
    lines += [
        f"  {name} did: {'; '.join(one) or 'nothing'}" for name, one in result.deviations.items()
    ]
    lines += [f"  {name} says: {outcome}" for name, outcome in result.outcomes.items()]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--first-seed", type=int, default=0)
    chosen = parser.parse_args()
    started = time.perf_counter()
    if chosen.trials == 1:
        result = played(chosen.first_seed)
        print(told(result))
        judged(result)
        return 0
    counts = campaign(chosen.trials, chosen.first_seed)
    for (kind, outcome), count in sorted(counts.items()):
        print(f"{kind:28} {outcome:24} {count}")
    seconds = time.perf_counter() - started
    print(f"{chosen.trials} trials, nothing wrong accepted, nobody honest named, {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
