"""Agree on clients' inputs, check them on shares, replace what is missing or invalid [mpc 7.5]."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np

from veilgrid.errors import RunAborted
from veilgrid.mpc._points import key_sets
from veilgrid.mpc._round import EMPTY, Heard, Round, Steps
from veilgrid.mpc._shares import Shares, public_matrix
from veilgrid.mpc.client import Mailbox
from veilgrid.mpc.engine import CheckFailed, Engine
from veilgrid.mpc.field import PRIME_FIELD, Words, octets_of, words_of
from veilgrid.mpc.message import Submission
from veilgrid.mpc.prss import Members, Stream

_ENTRY: Final = 5  # four words of digest, one of complaints


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs that passed, and what became of the others.

    Attributes
    ----------
    values
        By client, shares of its values.
    flags
        By client that did not pass: ``missing``, ``unreadable``, ``contradictory`` or
        ``invalid``.
    replaced
        Clients whose fallback stands in.
    """

    values: dict[str, Shares]
    flags: dict[str, str] = field(default_factory=dict)
    replaced: tuple[str, ...] = ()

    @property
    def clients(self) -> list[str]:
        """Return the clients that are counted, in order."""
        return list(self.values)


def intake(mpc: Engine, mailbox: Mailbox, count_min: int = 1) -> Steps[Batch]:
    """Return the inputs that all parties agree on and that are valid.

    Nothing else opens before: a batch of fewer than ``count_min`` inputs ends the computation.
    """
    names = sorted(mailbox.clients)
    flags: dict[str, str] = {}
    chosen = yield from agree_on_submissions(mpc, mailbox, names, flags)
    present = [name for name in names if name in chosen]
    _learn(mpc, mailbox, present)
    valid = yield from _validated(mpc, mailbox, present, flags)
    return _batch(mpc, mailbox, names, valid, flags, count_min)


def agree_on_submissions(
    mpc: Engine, mailbox: Mailbox, names: Sequence[str], flags: dict[str, str]
) -> Steps[dict[str, bytes]]:
    """Return the digests of submissions that count and that every party can read.

    Why others do not is added to ``flags``.
    """
    entries = yield Round(_roster(mailbox, names), label="roster")
    chosen = _chosen(mpc, entries, names, flags)
    if _lacking(mpc, entries, names, chosen):
        yield from _forward(mpc, mailbox, entries, names, chosen)
        entries = yield Round(_roster(mailbox, names), label="roster again")
    yield from _seeds(mpc, mailbox, entries, names, chosen, flags)
    return chosen


def _roster(mailbox: Mailbox, names: Sequence[str]) -> Words:
    """Return for each client the digest of its submission and which own seeds are bad."""
    out = np.zeros((len(names), _ENTRY), np.uint64)
    sets = key_sets(mailbox.n, mailbox.degree)
    for row, name in enumerate(names):
        received = mailbox.received.get(name)
        if received is None:
            continue
        out[row, :4] = words_of(received.digest)
        bad = 0
        for place, members in enumerate(sets):
            if mailbox.party in members and members not in received.seeds:
                bad |= 1 << place
        out[row, 4] = bad
    return out.reshape(-1)


def _table(entries: Sequence[Heard]) -> list[Words]:
    return [one.shared.reshape(-1, _ENTRY) for one in entries]


def _chosen(
    mpc: Engine, entries: Sequence[Heard], names: Sequence[str], flags: dict[str, str]
) -> dict[str, bytes]:
    """Return the digest of each submission that enough parties hold."""
    chosen: dict[str, bytes] = {}
    for row, name in enumerate(names):
        counts: dict[bytes, int] = {}
        for table in _table(entries):
            digest = table[row, :4].tobytes()
            if any(digest):
                counts[digest] = counts.get(digest, 0) + 1
        enough = [digest for digest, count in counts.items() if count >= mpc.n - mpc.degree]
        if len(enough) == 1:
            chosen[name] = enough[0]
        else:
            flags[name] = "contradictory" if counts and len(counts) > 1 else "missing"
    return chosen


def _lacking(
    mpc: Engine, entries: Sequence[Heard], names: Sequence[str], chosen: dict[str, bytes]
) -> list[tuple[str, int]]:
    """Return the submissions that somebody lacks, and the first party that has each."""
    tables, out = _table(entries), []
    for row, name in enumerate(names):
        if name not in chosen:
            continue
        holders = [
            party
            for party in range(1, mpc.n + 1)
            if tables[party - 1][row, :4].tobytes() == chosen[name]
        ]
        if len(holders) < mpc.n:
            out.append((name, holders[0]))
    return out


def _size(mailbox: Mailbox, name: str) -> int:
    """Return the words that an encoded submission of this client takes at most."""
    sets = len(key_sets(mailbox.n, mailbox.degree))
    own = 16 * sets + 64
    octets = (
        16 * mailbox.size(name)
        + 40 * sets
        + mailbox.n * own
        + 4 * len(name)
        + len(mailbox.session)
        + 512
    )
    return octets // 8 + 1


def _forward(
    mpc: Engine,
    mailbox: Mailbox,
    entries: Sequence[Heard],
    names: Sequence[str],
    chosen: dict[str, bytes],
) -> Steps[None]:
    """Pass submissions on to parties that lack them; who claimed to have one must show it."""
    lacking = _lacking(mpc, entries, names, chosen)
    lengths = [0] * mpc.n
    own = [EMPTY]
    for name, holder in lacking:
        lengths[holder - 1] += _size(mailbox, name)
        received = mailbox.received.get(name)
        if holder == mailbox.party and received is not None:
            own.append(_padded(received.submission, _size(mailbox, name)))
    heard = yield Round(np.concatenate(own), tuple(lengths), label="submissions")
    at = [0] * mpc.n
    for name, holder in lacking:
        size = _size(mailbox, name)
        words = heard[holder - 1].shared[at[holder - 1] : at[holder - 1] + size]
        at[holder - 1] += size
        _take(mailbox, name, chosen[name], words, holder)


def _padded(submission: Submission, size: int) -> Words:
    octets = msgspec.msgpack.encode(submission)
    out = np.zeros(8 * size, np.uint8)
    out[: len(octets) + 8] = np.frombuffer(len(octets).to_bytes(8, "little") + octets, np.uint8)
    return out.view(np.uint64)


def _take(mailbox: Mailbox, name: str, digest: bytes, words: Words, holder: int) -> None:
    from veilgrid.mpc.client import digest_of

    octets = bytes(octets_of(words))
    length = min(int.from_bytes(octets[:8], "little"), len(octets) - 8)
    try:
        submission = msgspec.msgpack.decode(octets[8 : 8 + length], type=Submission)
    except msgspec.DecodeError:
        raise CheckFailed("a party did not show a submission it claimed", (holder,)) from None
    if digest_of(submission) != digest or submission.client != name:
        raise CheckFailed("a party did not show a submission it claimed", (holder,))
    known = mailbox.received.get(name)
    if known is None or known.digest != digest:
        mailbox.received.pop(name, None)
        if mailbox.accept_vouched(submission):
            raise CheckFailed("a party showed a forged submission", (holder,))


def _seeds(
    mpc: Engine,
    mailbox: Mailbox,
    entries: Sequence[Heard],
    names: Sequence[str],
    chosen: dict[str, bytes],
    flags: dict[str, str],
) -> Steps[None]:
    """Where a member of a set could not read its seed, another member shows it to all.

    Either that member is corrupt and knew the seed, or the client is and has no secret.
    """
    sets, tables = key_sets(mpc.n, mpc.degree), _table(entries)
    shown: list[tuple[str, Members, int]] = []
    for row, name in enumerate(names):
        if name not in chosen:
            continue
        for place, members in enumerate(sets):
            bad = [p for p in members if int(tables[p - 1][row, 4]) >> place & 1]
            good = [p for p in members if p not in bad]
            if bad and not good:
                flags[name] = "unreadable"
                del chosen[name]
                break
            if bad:
                shown.append((name, members, good[0]))
    shown = [one for one in shown if one[0] in chosen]
    if not shown:
        return
    own = [EMPTY]
    lengths = [0] * mpc.n
    for name, members, holder in shown:
        lengths[holder - 1] += 2
        if holder == mailbox.party:
            own.append(words_of(mailbox.received[name].seeds.get(members, bytes(16))))
    heard = yield Round(np.concatenate(own), tuple(lengths), label="seeds")
    at = [0] * mpc.n
    for name, members, holder in shown:
        words = heard[holder - 1].shared[at[holder - 1] : at[holder - 1] + 2]
        at[holder - 1] += 2
        seed = words.tobytes()
        received = mailbox.received[name]
        if not mailbox.is_committed(received.submission, members, seed):
            raise CheckFailed("a party did not show a seed it claimed", (holder,))
        if mailbox.party in members:
            received.seeds[members] = seed
            mailbox.received[name] = received


def _learn(mpc: Engine, mailbox: Mailbox, present: Sequence[str]) -> None:
    for name in present:
        mpc.source.learn(name, mailbox.received[name].seeds)


def _bits(mpc: Engine, mailbox: Mailbox, name: str) -> Words:
    """Return shares of the bits of a client's input, valid or not."""
    count = mailbox.clients[name].form.bit_count
    correction = words_of(mailbox.received[name].submission.correction)
    total = mpc.source.constant(PRIME_FIELD.from_words(correction))
    for members in mpc.source.sets:
        words = mpc.source.client_words(name, members, 2 * count)
        part = mpc.source.known(PRIME_FIELD, members, PRIME_FIELD.from_words(words))
        total = PRIME_FIELD.add(total, part)
    return total


def _validated(
    mpc: Engine, mailbox: Mailbox, present: Sequence[str], flags: dict[str, str]
) -> Steps[dict[str, Words]]:
    """Open, for each client, one number that is zero if and only if its input is valid.

    Each bit b adds a random multiple of b b - b, each equality a random multiple of its error.
    """
    if not present:
        return {}
    bits = {name: _bits(mpc, mailbox, name) for name in present}
    seed = yield from mpc.coin()
    stream = Stream(seed.to_bytes(16, "little"), b"validity")
    width = max(one.shape[0] for one in bits.values())
    left, right, rest = [], [], []
    for name in present:
        one, form = bits[name], mailbox.clients[name].form
        weight = PRIME_FIELD.from_words(stream.words(2 * one.shape[0]))
        weighed = PRIME_FIELD.multiply(weight, one)
        error = PRIME_FIELD.subtract(PRIME_FIELD.zeros(1), PRIME_FIELD.inner(weight, one))
        for row, total in form.equalities:
            factor = PRIME_FIELD.from_words(stream.words(2))
            sums = PRIME_FIELD.inner(PRIME_FIELD.vector(row), one)
            off = PRIME_FIELD.subtract(sums, mpc.source.constant(PRIME_FIELD.vector([total])))
            error = PRIME_FIELD.add(error, PRIME_FIELD.multiply(factor, off))
        padding = PRIME_FIELD.zeros(width - one.shape[0])
        left += [weighed, padding]
        right += [one, padding]
        rest.append(error)
    squares = yield from mpc.product(
        PRIME_FIELD, np.concatenate(left), np.concatenate(right), width
    )
    errors = PRIME_FIELD.add(squares, np.concatenate(rest))
    opened = yield from mpc.open_elements(errors)
    for name, value in zip(present, opened, strict=True):
        if value:
            flags[name] = "invalid"
    return {name: one for name, one in bits.items() if name not in flags}


def _batch(
    mpc: Engine,
    mailbox: Mailbox,
    names: Sequence[str],
    valid: dict[str, Words],
    flags: dict[str, str],
    count_min: int,
) -> Batch:
    """Turn valid bits into values and put in fallbacks."""
    if len(valid) < count_min:
        raise RunAborted(
            f"only {len(valid)} of {len(names)} inputs are valid, at least {count_min} are "
            "needed before anything opens; wait for more clients or lower the minimum"
        )
    values: dict[str, Shares] = {}
    replaced = []
    for name in names:
        enrolled = mailbox.clients[name]
        if name in valid:
            bits = mpc.wrap(valid[name], 1)
            offsets = list(enrolled.form.offsets)
            values[name] = public_matrix(enrolled.form.weights, bits) + offsets
        elif enrolled.fallback is not None:
            values[name] = mpc.constant(enrolled.fallback)
            replaced.append(name)
    return Batch(values, flags, tuple(replaced))
