"""What parties, sites and everybody else hold of a sealed day, recorded as it runs [sealed 8.2].

A view is all that somebody receives or works out from it: a party's shares of what sites sent,
every word that it hears, what opens to all. Tests compare the views of two days whose secrets
differ, and one view with what uniform numbers look like.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from scipy import special

from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.machine import Effect, Event, NodeId, Received, Send
from veilgrid.mpc import Mailbox
from veilgrid.mpc._points import lagrange
from veilgrid.mpc.field import PRIME_FIELD, Words, words_of
from veilgrid.mpc.message import Said
from veilgrid.mpc.prss import client_words
from veilgrid.roles.sealed.day import (
    PublicDay,
    cast_of,
    coordination_of,
    costs_alone,
    step_in_memory,
)
from veilgrid.roles.sealed.heard import vector
from veilgrid.roles.sealed.keys import PAYER_NODE, SITES
from veilgrid.roles.sealed.message import Notice, Over
from veilgrid.roles.sealed.party import SealedParty
from veilgrid.secret import Randomness

HEARD_MAX: Final = 1 << 22
"""Words of a party's view of what is said that are kept."""

BINS: Final = 64

ALPHA: Final = 1e-6
"""A family of tests fails if its least p-value times their number is below this.

An audit has eleven families: at 1e-3 one of a hundred called honest views a leak. With a thousand
numbers and more, what is told apart is so by far less than this.
"""


SAMPLES_MIN: Final = 1000
"""Below so many numbers a test of their bits would say nothing."""

ROUND_MIN: Final = 24
"""Numbers opened in a round from which on they are compared by themselves."""

Heard = dict[tuple[str, int, int], Words]
"""Words by task, round and author, as long as a view keeps them."""


OPEN: Final = ("output", "roster")
"""How rounds are labelled in which results open, which is the policy's, and who sent what."""

NEAR_BITS: Final = 108
"""Opened numbers of two days that differ by less are near each other."""

NEAR_SHARE: Final = 2.0**-11
"""Share of opened numbers, masked by 119 bits or more, that are near by chance, at most."""


class WatchedParty(SealedParty):
    """An honest party that keeps everything it received."""

    heard: dict[tuple[int, int, int], Words]
    _heard_words: int
    _results: set[tuple[bytes, int]]
    _sessions: dict[bytes, int]
    _kinds: dict[int, str]

    def watch(self) -> None:
        """Begin to keep."""
        self.heard, self._heard_words, self._results = {}, 0, set()
        self._sessions, self._kinds = {}, {}

    def handle(self, event: Event) -> list[Effect]:
        """Keep what is said, then do as any party."""
        match event:
            case Received(sender, Said() as said) if sender in self.agreement.parties:
                self._keep_words(said, sender)
        self._keep_kind()
        effects = super().handle(event)
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.message, Said):
                self._leave_out_results()
                self._keep_words(effect.message, self.me)
        return effects

    def _leave_out_results(self) -> None:
        """Remember rounds in which results open: those are the policy's, and differ."""
        for party in (self._inner, self._former):
            for place, spoken in enumerate(party.state.spoken if party is not None else []):
                if any(one in spoken.label for one in OPEN):
                    self._results.add((party.session, place))  # type: ignore[union-attr]

    def hidden(self) -> Heard:
        """Return what was heard in rounds in which no result opens.

        Tasks go by kind and how many of it came before, so that those of two days are matched.
        """
        results = {(self._task_of(session), place) for session, place in self._results}
        return {
            (self._kinds.get(task, "-"), place, author): words
            for (task, place, author), words in self.heard.items()
            if (task, place) not in results
        }

    def _keep_kind(self) -> None:
        task = self.course.task
        if task.number not in self._kinds:
            earlier = sum(kind.startswith(f"{task.kind} ") for kind in self._kinds.values())
            self._kinds[task.number] = f"{task.kind} {earlier}"

    def _keep_words(self, said: Said, author: NodeId) -> None:
        key = (self._task_of(said.session), said.round, self.agreement.parties.index(author))
        if key not in self.heard and self._heard_words < HEARD_MAX and said.shared:
            words = words_of(said.shared)
            self._heard_words += words.size
            self.heard[key] = words

    def _task_of(self, session: bytes) -> int:
        for number in range(len(self._sessions), self.course.task.number + 2):
            self._sessions[self.agreement.session(number)] = number
        return self._sessions.get(session, -1)

    def _forget(self) -> None:
        """Forget nothing."""

    def mailbox(self, number: int) -> Mailbox:
        """Return what sites sent for a task."""
        return self._mailboxes[number]

    def shares(self, number: int, name: str) -> Words:
        """Return own shares of what a site sent for a task."""
        engine = self._inner.state.engine if self._inner is not None else None
        return vector(engine, self._mailboxes[number], name, 2**60).data  # type: ignore[arg-type]


@dataclass
class Views:
    """One recorded day.

    Attributes
    ----------
    opened
        What opened to all, task by task.
    padded
        What opened to all behind the pads of one site, by task and bus, as octets.
    payments : by bus, currency
        What the payer heard.
    """

    public: PublicDay
    parties: list[WatchedParty]
    coordination: Any
    degree: int
    tasks: list[tuple[int, str, int]] = field(default_factory=list)
    opened: list[dict[str, Any]] = field(default_factory=list)
    padded: dict[int, dict[int, bytes]] = field(default_factory=dict)
    payments: dict[int, float] = field(default_factory=dict)

    def known_part(self, coalition: Sequence[int], number: int, name: str) -> Words:
        """Return a site's vector less all that a coalition's seeds stand for."""
        total = PRIME_FIELD.from_words(
            words_of(
                self.parties[coalition[0]].mailbox(number).received[name].submission.correction
            )
        )
        seen = set()
        for place in coalition:
            received = self.parties[place].mailbox(number).received[name]
            for members, seed in received.seeds.items():
                if members not in seen:
                    seen.add(members)
                    words = client_words(seed, members, 2 * len(total))
                    total = PRIME_FIELD.add(total, PRIME_FIELD.from_words(words))
        return np.asarray(total)

    def names(self, number: int) -> list[str]:
        """Return who sent something for a task."""
        return sorted(self.parties[0].mailbox(number).received)

    def numbers(self) -> list[int]:
        """Return the tasks for which sites sent something."""
        return sorted(
            n for n in self.parties[0]._mailboxes if self.parties[0]._mailboxes[n].received
        )


def record(
    day: Day,
    limits: Limits,
    randomness: Randomness,
    *,
    party_count: int = 3,
    degree: int = 1,
) -> Views:
    """Run a day and keep everybody's view."""
    public = PublicDay.of(day, limits)
    cast = cast_of(
        public,
        dict(enumerate(day.sites)),
        costs_alone(day),
        randomness,
        party_count=party_count,
        degree=degree,
    )
    parties: list[WatchedParty] = []
    for machine in cast.machines.values():
        if isinstance(machine, SealedParty):
            machine.__class__ = WatchedParty
            machine.watch()  # type: ignore[attr-defined]
            parties.append(machine)  # type: ignore[arg-type]
    group = cast.group
    seen: list[tuple[int, str, int]] = []

    def follow() -> None:
        task = group.course.task
        if not seen or seen[-1][0] != task.number:
            seen.append((task.number, task.kind, task.iteration))

    notices, payer = _Notices(group.handle), cast.machines[PAYER_NODE]
    group.handle = notices  # type: ignore[method-assign]
    payer.handle = notices.passing(payer.handle)  # type: ignore[method-assign,assignment]
    with cast.pool:
        driven = step_in_memory(cast.machines, follow)
    plan = coordination_of(day, driven, SITES, public.register.unit)
    payments = driven.outcomes[PAYER_NODE][0].payments
    opened = notices.results()
    return Views(public, parties, plan, degree, seen, opened, notices.padded, payments)


class _Notices:
    """Keeps what opens to all on its way to the sites and to the payer."""

    def __init__(self, passed: Any) -> None:
        self._passed = passed
        self._by_task: dict[int, bytes] = {}
        self.padded: dict[int, dict[int, bytes]] = {}

    def __call__(self, event: Event) -> list[Effect]:
        if isinstance(event, Received) and isinstance(event.message, Notice):
            self._by_task.setdefault(event.message.task, event.message.result)
            if event.message.own:
                self.padded.setdefault(event.message.task, event.message.own)
        return self._passed(event)  # type: ignore[no-any-return]

    def passing(self, passed: Callable[[Event], list[Effect]]) -> Callable[[Event], list[Effect]]:
        """Keep what the payer is told, too."""

        def handle(event: Event) -> list[Effect]:
            match event:
                case Received(_, Over(task=after, own=own)) if own:
                    self.padded[after - 1] = {**self.padded.get(after - 1, {}), **own}
            return passed(event)

        return handle

    def results(self) -> list[dict[str, Any]]:
        return [
            msgspec.msgpack.decode(result) | {"task": number}
            for number, result in sorted(self._by_task.items())
        ]


# -- tests ----------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """One family of tests.

    Attributes
    ----------
    p_least : in [0, 1]
        Least p-value, times the number of tests.
    """

    what: str
    role: str
    tests: int
    samples: int
    p_least: float

    @property
    def is_passed(self) -> bool:
        """Whether nothing was told apart."""
        return self.p_least > ALPHA


def low_and_high(elements: Words) -> list["np.typing.NDArray[np.int64]"]:
    """Return low and high bits of field elements, 6 each."""
    flat = elements.reshape(-1, 2)
    low = (flat[:, 0] & np.uint64(BINS - 1)).astype(np.int64)
    high = (flat[:, 1] >> np.uint64(63 - 6)).astype(np.int64)
    return [low, high]


def chi_square(values: "np.typing.NDArray[np.int64]", bins: int = BINS) -> float:
    """Return the p-value of values being uniform below ``bins``."""
    found = np.bincount(values, minlength=bins)
    expected = len(values) / bins
    return float(special.chdtrc(bins - 1, float(((found - expected) ** 2).sum() / expected)))


def chi_square_two(
    one: "np.typing.NDArray[np.int64]", other: "np.typing.NDArray[np.int64]", bins: int
) -> float:
    """Return the p-value of two samples coming from one distribution."""
    a, b = np.bincount(one, minlength=bins), np.bincount(other, minlength=bins)
    both = a + b
    present = both > 0
    scale = (len(one) / len(other)) ** 0.5
    off = (a[present] / scale - b[present] * scale) ** 2 / both[present]
    return float(special.chdtrc(max(int(present.sum()) - 1, 1), float(off.sum())))


def kolmogorov(one: Words, other: Words) -> float:
    """Return the two-sample Kolmogorov-Smirnov p-value of field elements as fractions."""
    wide = [part.reshape(-1, 2).astype(np.float64) for part in (one, other)]
    parts = [np.sort(part[:, 1] * 2.0**64 + part[:, 0]) for part in wide]
    both = np.concatenate(parts)
    steps = [np.searchsorted(part, both, side="right") / len(part) for part in parts]
    distance = float(np.max(np.abs(steps[0] - steps[1])))
    size = (len(parts[0]) * len(parts[1]) / (len(parts[0]) + len(parts[1]))) ** 0.5
    return float(special.kolmogorov(size * distance))


def combined(shares: Sequence[Words]) -> list[Words]:
    """Return each party's shares and sums with small coefficients of any two parties'."""
    out = list(shares)
    add, subtract = PRIME_FIELD.add, PRIME_FIELD.subtract
    for one, other in combinations(shares, 2):
        out += [add(one, other), subtract(one, other), subtract(add(one, one), other)]
    return out


def tell_shares_apart(role: str, first: Sequence[Words], second: Sequence[Words]) -> list[Verdict]:
    """Test a coalition's shares of two different secrets.

    Parameters
    ----------
    role
        Who the coalition is.
    first, second
        Shares of each of the secrets, one array a member of the coalition.
    """
    pairs = list(zip(combined(first), combined(second), strict=True))
    uniform = [chi_square(bits) for pair in pairs for part in pair for bits in low_and_high(part)]
    apart = [kolmogorov(*pair) for pair in pairs]
    apart += [
        chi_square_two(mine, other, BINS)
        for pair in pairs
        for mine, other in zip(*(low_and_high(part) for part in pair), strict=True)
    ]
    samples = sum(len(part) for part in first)
    return [
        Verdict(
            "low and high bits of shares are uniform", role, len(uniform), samples, _least(uniform)
        ),
        Verdict("shares of two secrets are alike", role, len(apart), samples, _least(apart)),
    ]


def tell_padded_apart(role: str, first: Sequence[Words], second: Sequence[Words]) -> list[Verdict]:
    """Test what opened behind pads on two days with different secrets.

    Parameters
    ----------
    role
        Whose view it is.
    first, second
        Elements of each day, one array a task.

    Notes
    -----
    Prices hardly change from task to task, so a pad that served twice would show in differences
    of successive tasks: they would be small, and alike.
    """
    subtract, parts = PRIME_FIELD.subtract, []
    for day in (first, second):
        steps = [subtract(two, one) for one, two in pairwise(day) if len(one) == len(two)]
        parts.append([np.concatenate(day), np.concatenate(steps or list(day[:1]))])
    # A chi-square test wants a few numbers in each bin.
    bins = BINS if min(len(part) for day in parts for part in day) >= SAMPLES_MIN else BINS // 8
    uniform = [
        chi_square(bits * bins // BINS, bins)
        for day in parts
        for part in day
        for bits in low_and_high(part)
    ]
    again = [float(len(np.unique(day[0], axis=0)) == len(day[0])) for day in parts]
    apart = [kolmogorov(one, other) for one, other in zip(*parts, strict=True)]
    apart += [
        chi_square_two(mine * bins // BINS, other * bins // BINS, bins)
        for pair in zip(*parts, strict=True)
        for mine, other in zip(*(low_and_high(part) for part in pair), strict=True)
    ]
    count = sum(len(part) for part in parts[0])
    what = "what opens behind pads, and its changes, are uniform"
    alike = "what opens behind pads on two days is alike"
    return [
        Verdict(what, role, len(uniform + again), count, _least(uniform + again)),
        Verdict(alike, role, len(apart), count, _least(apart)),
    ]


def openings(first: Heard, second: Heard, n: int) -> list[tuple[Words, Words]]:
    """Return what a party works out from all words of each round, on each of two days.

    Words of all parties are added with the factors that open a sharing, and as they are, which
    opens a product. Only rounds in which as much was said on both days are compared: what is
    computed follows from what opened.
    """
    weights = [
        PRIME_FIELD.vector([1] * n),
        PRIME_FIELD.vector(lagrange(PRIME_FIELD, list(range(1, n + 1)), 0)),
    ]
    out = []
    for task, number, author in first:
        keys = [(task, number, other) for other in range(n)]
        sizes = {view[key].size for view in (first, second) for key in keys if key in view}
        is_whole = all(key in view for view in (first, second) for key in keys)
        if author or not is_whole or len(sizes) > 1 or sizes.pop() % 2:
            continue
        said = [
            np.stack([PRIME_FIELD.from_words(view[key]) for key in keys])
            for view in (first, second)
        ]
        out += [
            (PRIME_FIELD.combine(one, said[0]), PRIME_FIELD.combine(one, said[1]))
            for one in weights
        ]
    return out


def nearness(pairs: Sequence[tuple[Words, Words]]) -> float:
    """Return the p-value of so many opened numbers lying near those at their place another day.

    What opens at one place on two days comes from like secrets, but from masks of its own. Where a
    mask is too short, the two lie near each other.
    """
    near = count = 0
    edge = np.uint64((1 << (127 - NEAR_BITS)) - 1)
    for one, other in pairs:
        top = PRIME_FIELD.subtract(one, other)[:, 1] >> np.uint64(NEAR_BITS - 64)
        near += int(((top == 0) | (top == edge)).sum())
        count += len(one)
    return float(special.pdtrc(near - 1, NEAR_SHARE * count)) if near else 1.0


def tell_words_apart(role: str, first: Heard, second: Heard, n: int) -> Verdict:
    """Test what a party works out from all that is said on two days with different secrets.

    Parameters
    ----------
    role
        Whose view it is.
    first, second
        What was heard, with own words.
    n
        Number of parties.
    """
    pairs = openings(first, second, n)
    found = [nearness(pairs)]
    found += [kolmogorov(*pair) for pair in pairs if len(pair[0]) >= ROUND_MIN]
    nothing = np.zeros((0, 2), np.uint64)
    one, other = (np.concatenate([nothing, *(pair[k] for pair in pairs)]) for k in (0, 1))
    found += [
        chi_square_two(mine, his, BINS)
        for mine, his in zip(low_and_high(one), low_and_high(other), strict=True)
        if len(mine) >= SAMPLES_MIN
    ]
    what = "what is said and opened on two days is alike"
    return Verdict(what, role, len(found), len(one), _least(found))


def _least(found: Sequence[float]) -> float:
    return min(1.0, min(found, default=1.0) * len(found))
