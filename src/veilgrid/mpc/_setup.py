"""Agree on the keys of shared randomness [mpc 3.2].

Every member of a set contributes; the key is the hash of all contributions. Contributions are
committed to before all, so that a member which tells two members different things must show its
contribution openly, or is named.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from veilgrid.mpc._points import key_sets
from veilgrid.mpc._round import EMPTY, KEY_SHARES, Heard, Round, Steps
from veilgrid.mpc.engine import CheckFailed
from veilgrid.mpc.field import octets_of, words_of
from veilgrid.mpc.prss import Keyring, Members
from veilgrid.secret import Randomness

_WORDS = 4


def groups_of(n: int, degree: int) -> list[Members]:
    """Return all sets and then all pairs; each gets a key."""
    pairs = [(i, j) for i in range(1, n + 1) for j in range(i + 1, n + 1)]
    return [*key_sets(n, degree), *pairs]


def set_up(me: int, n: int, degree: int, session: bytes, randomness: Randomness) -> Steps[Keyring]:
    """Make this party's keyring in two rounds, three if somebody complains."""
    groups = groups_of(n, degree)
    own = {k: randomness.octets(32) for k, members in enumerate(groups) if me in members}
    heard = yield _first_round(me, n, groups, own)
    received, complaints = _received(me, n, groups, own, heard)
    answers = yield Round(np.array(complaints, np.uint64), label="key complaints")
    disputed = _disputed(n, groups, answers)
    if any(disputed):
        shown = [words_of(own[k]) for k in disputed[me - 1]]
        lengths = tuple(_WORDS * len(one) for one in disputed)
        shared = np.concatenate(shown) if shown else EMPTY
        opened = yield Round(shared, lengths, label="key contributions")
        _apply(n, groups, disputed, heard, opened, received)
    return _keyring(me, n, degree, groups, received, session)


def _first_round(me: int, n: int, groups: Sequence[Members], own: dict[int, bytes]) -> Round:
    commitments = [words_of(_commitment(own[k])) for k in sorted(own)]
    private = []
    for party in range(1, n + 1):
        common = [words_of(own[k]) for k in sorted(own) if party in groups[k] and party != me]
        private.append(np.concatenate(common) if common else EMPTY)
    size = max(one.size for one in private)
    private[me - 1] = np.zeros(size, np.uint64)
    shared = np.concatenate(commitments)
    return Round(shared, private=tuple(private), private_length=size, label=KEY_SHARES)


def _commitment(contribution: bytes) -> bytes:
    return hashlib.sha256(b"veilgrid mpc key contribution" + contribution).digest()


def _received(
    me: int, n: int, groups: Sequence[Members], own: dict[int, bytes], heard: Sequence[Heard]
) -> tuple[dict[tuple[int, int], bytes], list[int]]:
    """Return contributions by (group, party), and for each party the groups complained of."""
    received = {(k, me): value for k, value in own.items()}
    complaints = [0] * n
    for party in range(1, n + 1):
        if party == me:
            continue
        common = [k for k, members in enumerate(groups) if me in members and party in members]
        for place, k in enumerate(common):
            words = heard[party - 1].private[_WORDS * place : _WORDS * (place + 1)]
            value = bytes(octets_of(words))
            if _commitment(value) == _committed(groups, heard, k, party):
                received[k, party] = value
            else:
                complaints[party - 1] |= 1 << k
    return received, complaints


def _committed(groups: Sequence[Members], heard: Sequence[Heard], k: int, party: int) -> bytes:
    place = [g for g, members in enumerate(groups) if party in members].index(k)
    return bytes(octets_of(heard[party - 1].shared[_WORDS * place : _WORDS * (place + 1)]))


def is_committed(
    value: bytes, groups: Sequence[Members], heard: Sequence[Heard], k: int, party: int
) -> bool:
    """Return whether a party committed to this contribution to group ``k`` in the first round."""
    return _commitment(value) == _committed(groups, heard, k, party)


def _disputed(n: int, groups: Sequence[Members], answers: Sequence[Heard]) -> list[list[int]]:
    """Return for each party the groups whose other members complained of it."""
    out: list[list[int]] = [[] for _ in range(n)]
    for party in range(1, n + 1):
        for k, members in enumerate(groups):
            complaining = [
                other
                for other in members
                if other != party and int(answers[other - 1].shared[party - 1]) >> k & 1
            ]
            if party in members and complaining:
                out[party - 1].append(k)
    return out


def _apply(
    n: int,
    groups: Sequence[Members],
    disputed: list[list[int]],
    heard: Sequence[Heard],
    opened: Sequence[Heard],
    received: dict[tuple[int, int], bytes],
) -> None:
    """Take shown contributions; a party that shows none that it committed to is named."""
    for party in range(1, n + 1):
        for place, k in enumerate(disputed[party - 1]):
            words = opened[party - 1].shared[_WORDS * place : _WORDS * (place + 1)]
            value = bytes(octets_of(words))
            if _commitment(value) != _committed(groups, heard, k, party):
                raise CheckFailed("a key contribution does not match its commitment", (party,))
            received[k, party] = value


def key_of(members: Members, contributions: Sequence[bytes]) -> bytes:
    """Return the key that all members' contributions make."""
    joined = b"".join(contributions)
    return hashlib.sha256(b"veilgrid mpc key" + bytes(members) + joined).digest()


def _keyring(
    me: int,
    n: int,
    degree: int,
    groups: Sequence[Members],
    received: dict[tuple[int, int], bytes],
    session: bytes,
) -> Keyring:
    set_count = len(key_sets(n, degree))
    contributions = {
        (k, members): [received[k, party] for party in members]
        for k, members in enumerate(groups)
        if me in members
    }
    keys = {place: key_of(place[1], parts) for place, parts in contributions.items()}
    keyring = Keyring(
        me,
        n,
        degree,
        {members: key for (k, members), key in keys.items() if k < set_count},
        {members: key for (k, members), key in keys.items() if k >= set_count},
        session,
    )
    keyring.contributions = {k: parts for (k, _), parts in contributions.items()}
    return keyring
