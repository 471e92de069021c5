"""Who deviated: from what is computed again [mpc 8.2, 8.3].

Nothing told here helps those who deviated: summands are of values that are open or blinded, and
a key is disclosed only to settle a dispute between two of its holders, one of whom is corrupt and
knew it already.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from veilgrid.mpc import _binary
from veilgrid.mpc._points import octal_spike, spike, weights
from veilgrid.mpc._replay import Opened, PairZeros, Record, Replayed, SetSummand, Told, replay
from veilgrid.mpc._round import Heard
from veilgrid.mpc._setup import groups_of, is_committed, key_of
from veilgrid.mpc._testimony import failing_round, private_words
from veilgrid.mpc.field import BINARY_FIELD, PRIME_FIELD, Field, Words, octets_of, words_of
from veilgrid.mpc.message import Finding
from veilgrid.mpc.prss import Members

if TYPE_CHECKING:
    from veilgrid.mpc.party import Party

_OPENED: Final = {
    "masked": PRIME_FIELD,
    "output": PRIME_FIELD,
    "check prime": PRIME_FIELD,
    "check binary": BINARY_FIELD,
    "masked bits": None,
}
"""Rounds in which shares of the degree are told, and their field; None stands for GF(8)."""


class Claims(msgspec.Struct, frozen=True):
    """What a party computed again: by group number, what the group's summand was in a round."""

    round: int
    summands: dict[int, bytes]


class Disclosures(msgspec.Struct, frozen=True):
    """Contributions to keys of disputed groups, and clients' seeds for them."""

    contributions: dict[int, list[bytes]]
    seeds: dict[int, dict[str, bytes]]


@dataclass(frozen=True, slots=True)
class _Section:
    """One opening within a round: whose words are where."""

    label: str
    field: Field | None
    starts: tuple[int, ...]
    sizes: tuple[int, ...]


# -- what should have been said -----------------------------------------------------------------


UNREADABLE: Final = -1
"""Round of a finding that cannot be read."""

PUBLIC: Final = -1
"""Group number of what needs no key: constants and opened products."""


def _record(party: "Party") -> Record | None:
    """Return the rounds of the function up to the failing one, with what kings heard."""
    state, last = party.state, failing_round(party)
    if state.first < 0 or last < state.first or state.rounds[last].heard is None:
        return None
    to_kings = _king_words(party)
    rounds = []
    for number in range(state.first, last + 1):
        heard = state.rounds[number].heard or []
        if heard and state.spoken[number].private_length:
            columns = to_kings.get(number)
            if columns is None:
                return None
            heard = [Heard(one.shared, columns[i]) for i, one in enumerate(heard)]
        rounds.append(heard)
    return Record(rounds, state.heads[state.first : last + 1])


def _king_words(party: "Party") -> dict[int, list[Words]]:
    """Return, for each round with kings, what each party said to each: (word, king)."""
    state = party.state
    found = {
        (number, sender, king): words_of(private)
        for number, sender, king, private in private_words(party)
        if len(private) % 8 == 0
    }
    out: dict[int, list[Words]] = {}
    for number, heading in enumerate(state.rounds):
        if heading.heard is None:
            continue
        size = state.spoken[number].private_length
        if number == 0 or size == 0:
            continue
        blocks = [np.zeros((size, party.n), np.uint64) for _ in range(party.n)]
        is_whole = True
        for sender in range(1, party.n + 1):
            for king in range(1, party.n + 1):
                words = found.get((number, sender, king))
                if words is not None and words.size == size:
                    blocks[sender - 1][:, king - 1] = words
                elif sender != king:
                    is_whole = False
        if is_whole:
            out[number] = blocks
    return out


def _sections(party: "Party") -> list[_Section]:
    """Return the openings of shares within the failing round."""
    spoken = party.state.spoken[failing_round(party)]
    starts = [0] * party.n
    out = []
    for label, sizes in spoken.parts(party.n):
        if label in _OPENED:
            out.append(_Section(label, _OPENED[label], tuple(starts), sizes[: party.n]))
        starts = [start + size for start, size in zip(starts, sizes, strict=False)]
    return out


def recompute(party: "Party") -> bytes | None:
    """Return what the summand of each own group was in the failing round."""
    record = _record(party)
    engine = party.state.engine
    if record is None or engine is None or not _sections(party):
        return None
    summands = {}
    for group, parts in party.keyring.contributions.items():
        words = _summand(party, record, group, parts, _own_seeds(party, group))
        summands[group] = bytes(octets_of(words))
    return msgspec.msgpack.encode(Claims(failing_round(party), summands))


def _own_seeds(party: "Party", group: int) -> dict[str, bytes]:
    """Return clients' seeds for a set; a pair's key makes zero shares only and has none."""
    if group >= _set_count(party):
        return {}
    members = groups_of(party.n, party.degree)[group]
    return {
        client: seeds[members] for client, seeds in party.keyring.seeds.items() if members in seeds
    }


def _summand(
    party: "Party", record: Record, group: int, parts: list[bytes], seeds: Mapping[str, bytes]
) -> Words:
    members = groups_of(party.n, party.degree)[group]
    key = key_of(members, parts)
    source: Replayed
    if group < _set_count(party):
        source = SetSummand(party.n, party.degree, members, key, party.session, seeds)
    else:
        source = PairZeros(party.n, party.degree, members, key, party.session)
    return replay(party.program, source, record)


def _set_count(party: "Party") -> int:
    return len(groups_of(party.n, party.degree)) - party.n * (party.n - 1) // 2


def claims_of(finding: Finding) -> Claims:
    """Return what a finding claims; nothing, of any round, if it cannot be read."""
    try:
        return msgspec.msgpack.decode(finding.body, type=Claims)
    except msgspec.DecodeError:
        return Claims(UNREADABLE, {})


def heard_from(party: "Party", step: int) -> set[int]:
    """Return whose findings of a step are there; those of another round do not count."""
    findings = party.state.findings.get(step, {})
    if step != 1:
        return set(findings)
    here = (failing_round(party), UNREADABLE)
    return {holder for holder, one in findings.items() if claims_of(one).round in here}


def _claims(party: "Party") -> dict[int, dict[int, Words]]:
    """Return by group and holder what was claimed, restricted to what matters."""
    out: dict[int, dict[int, Words]] = {}
    groups = groups_of(party.n, party.degree)
    size = 8 * party.state.spoken[failing_round(party)].shared.size
    for holder, finding in party.state.findings.get(1, {}).items():
        claims = claims_of(finding)
        for group, members in enumerate(groups):
            if holder in members:
                body = claims.summands.get(group, b"")
                words = words_of(body) if len(body) == size else np.empty(0, np.uint64)
                out.setdefault(group, {})[holder] = _relevant(party, group, words)
    return out


def _relevant(party: "Party", group: int, words: Words) -> Words:
    """Keep the words of openings; zero shares matter in the last step of a check only."""
    kept = [np.empty(0, np.uint64)]
    is_set = group < _set_count(party)
    for section in _sections(party):
        if is_set or section.label.startswith("check"):
            start = section.starts[party.number - 1]
            part = words[start : start + section.sizes[party.number - 1]]
            kept.append(part if is_set else part[-len(part) // 3 :])
    return np.concatenate(kept)


def disclose(party: "Party") -> bytes | None:
    """Return the contributions to keys whose holders disagree, or None if none do."""
    disputed = _disputed(party)
    if not disputed:
        return None
    contributions = party.keyring.contributions
    own = [group for group in disputed if group in contributions]
    return msgspec.msgpack.encode(
        Disclosures(
            {group: contributions[group] for group in own},
            {group: _own_seeds(party, group) for group in own},
        )
    )


def _disputed(party: "Party") -> list[int]:
    return [
        group
        for group, claims in _claims(party).items()
        if len({words.tobytes() for words in claims.values()}) > 1
    ]


# -- who it was ---------------------------------------------------------------------------------


def conclude(party: "Party") -> set[int]:
    """Return who is proved to have deviated."""
    record = _record(party)
    if not party.state.findings.get(1) or record is None:
        return set()
    liars = _liars(party, record)
    # A dispute that nobody settled has no honest end: nothing follows from its claims.
    return liars if liars or _disputed(party) else _deviating(party, record)


def _deviating(party: "Party", record: Record) -> set[int]:
    """Return whose messages differ from what the undisputed summands give."""
    true = {group: next(iter(claims.values())) for group, claims in _claims(party).items()}
    public = replay(party.program, Opened(party.n, party.degree), record)
    true[PUBLIC] = _relevant(party, 0, public)
    return _wrong_shares(party, true) or _wrong_products(party, record, true)


def _liars(party: "Party", record: Record) -> set[int]:
    """Settle disputes: return who claimed something else than the disclosed key gives."""
    named: set[int] = set()
    claims = _claims(party)
    for group in _disputed(party):
        shown = _shown(party, group)
        if shown is None:
            continue
        words = _summand(party, record, group, *shown)
        true = _relevant(party, group, words).tobytes()
        named |= {holder for holder, claim in claims[group].items() if claim.tobytes() != true}
    return named


def _shown(party: "Party", group: int) -> tuple[list[bytes], dict[str, bytes]] | None:
    """Return disclosed contributions and seeds that match what was committed to."""
    members = groups_of(party.n, party.degree)[group]
    first = party.state.rounds[0].heard or []
    for finding in party.state.findings.get(2, {}).values():
        try:
            shown = msgspec.msgpack.decode(finding.body, type=Disclosures)
        except msgspec.DecodeError:
            continue
        parts = shown.contributions.get(group, [])
        if len(parts) != len(members):
            continue
        groups = groups_of(party.n, party.degree)
        is_right = all(
            is_committed(part, groups, first, group, member)
            for part, member in zip(parts, members, strict=True)
        )
        seeds = shown.seeds.get(group, {})
        is_set = group < _set_count(party)
        if is_right and (party.are_committed(members, seeds) if is_set else not seeds):
            return parts, seeds
    return None


def _cut(section: _Section, words: Words, party: int) -> Words:
    start = section.starts[party - 1]
    return words[start : start + section.sizes[party - 1]]


def _offsets(party: "Party") -> Iterator[tuple[_Section, int]]:
    at = 0
    for section in _sections(party):
        yield section, at
        at += section.sizes[party.number - 1]


def _wrong_shares(party: "Party", true: Mapping[int, Words]) -> set[int]:
    """Return whose opened shares are not what the summands add up to."""
    heard = party.state.rounds[failing_round(party)].heard or []
    named = set()
    for section, at in _offsets(party):
        size = section.sizes[party.number - 1]
        for number in range(1, party.n + 1):
            told = _cut(section, heard[number - 1].shared, number)
            should = _share(party, section.field, true, at, size, number)
            if section.field is not None:
                told = section.field.flat(section.field.from_words(told))
            if not np.array_equal(told, should):
                named.add(number)
    return named


def _share(
    party: "Party", field: Field | None, true: Mapping[int, Words], at: int, size: int, number: int
) -> Words:
    """Return what a party should have told: its share, put together from the summands."""
    groups = groups_of(party.n, party.degree)[: _set_count(party)]
    known = true[PUBLIC][at : at + size]
    total = known.reshape(-1, 3).copy() if field is None else field.from_words(known)
    for group, members in enumerate(groups):
        if number not in members:
            continue
        part = true[group][at : at + size]
        if field is None:
            factor = octal_spike(party.n, members, number)
            _binary.octal_accumulate(total, factor, part.reshape(-1, 3))
        else:
            factors = field.vector([spike(field, party.n, members, number)])
            field.accumulate(total, factors, field.from_words(part))
    return total.reshape(-1) if field is None else field.flat(field.from_words(field.flat(total)))


def _wrong_products(party: "Party", record: Record, true: Mapping[int, Words]) -> set[int]:
    """Return whose messages in multiplications do not fit its own shares [mpc 8.3]."""
    named = set()
    for section, at in _offsets(party):
        field = section.field
        if field is None or not section.label.startswith("check"):
            continue
        size, words = section.sizes[party.number - 1], field.words
        e = _number(field, true[PUBLIC][at + 2 * words : at + 3 * words])
        for number in range(1, party.n + 1):
            share = _share(party, field, true, at, size, number)
            x, y, z = (_number(field, share[k * words : (k + 1) * words]) for k in range(3))
            told = replay(party.program, Told(party.n, party.degree, number), record)
            w = _number(field, _cut(section, told, party.number)[2 * words :])
            mask = field.minus(e, z)
            weight = weights(field, party.n)[number - 1]
            right = field.times(weight, field.plus(field.times(x, y), mask))
            right = field.plus(right, _zeros(party, section, true, number))
            if right != w:
                named.add(number)
    return named


def _zeros(party: "Party", section: _Section, true: Mapping[int, Words], number: int) -> int:
    """Return a party's combined zero share: the sum over its pairs."""
    field = section.field
    total = 0
    if field is None:
        return total
    checks = [one for one in _sections(party) if one.label.startswith("check")]
    at = sum(one.sizes[0] // 3 for one in checks[: checks.index(section)])
    groups = groups_of(party.n, party.degree)
    for group in range(_set_count(party), len(groups)):
        pair: Members = groups[group]
        if number in pair:
            part = _number(field, true[group][at : at + field.words])
            total = field.plus(total, part) if number == pair[0] else field.minus(total, part)
    return total


def _number(field: Field, words: Words) -> int:
    return field.numbers(field.from_words(words))[0]
