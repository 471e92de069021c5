"""What a secure computation says and hears in one round [mpc 4.2]."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import numpy as np

from veilgrid.errors import invariant
from veilgrid.mpc.field import Words

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Round:
    """Words for everyone, and words for one party each.

    Attributes
    ----------
    shared
        Flat words that every party gets alike.
    lengths
        Words expected of each party; None means as many as own.
    private
        Flat words for each party, the own included; None means none.
    private_length
        Words expected from each party in its private section.
    label
        What the round is for; it appears in accusations and profiles.
    """

    shared: Words
    lengths: tuple[int, ...] | None = None
    private: tuple[Words, ...] | None = None
    private_length: int = 0
    label: str = "open"
    sections: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def parts(self, n: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Return label and words of each party for each of the rounds that were put together."""
        return self.sections or ((self.label, self.lengths or (self.shared.size,) * n),)


KEY_SHARES: Final = "key shares"


class Spoken(Protocol):
    """What one party said, as octets."""

    @property
    def shared(self) -> bytes: ...
    @property
    def private(self) -> bytes: ...


def misshapen(spoken: Round | None, said: Mapping[int, Spoken], me: int) -> tuple[int, ...]:
    """Return who said more or fewer words than the round asks for.

    Keys are left out: who got none that fits its commitment complains of it openly [mpc 3.2].
    """
    wrong = []
    for number, one in said.items() if spoken is not None else ():
        size = spoken.shared.size if spoken.lengths is None else spoken.lengths[number - 1]  # type: ignore[union-attr]
        is_open = number == me or spoken.label == KEY_SHARES  # type: ignore[union-attr]
        is_private_right = is_open or len(one.private) == 8 * spoken.private_length  # type: ignore[union-attr]
        if len(one.shared) != 8 * size or not is_private_right:
            wrong.append(number)
    return tuple(wrong)


@dataclass(frozen=True, slots=True)
class Heard:
    """What one party said in a round."""

    shared: Words
    private: Words


Steps = Generator[Round, list[Heard], T]
"""A secure computation: one ``yield`` a round, its result at the end."""

EMPTY = np.empty(0, np.uint64)


def together(*steps: Steps[Any]) -> Steps[tuple[Any, ...]]:
    """Run computations side by side: what they say in one step travels in one round."""
    results: list[Any] = [None] * len(steps)
    waiting: dict[int, Round] = {}
    for index, step in enumerate(steps):
        _advance(steps, index, None, waiting, results)
        invariant(step is steps[index], "each computation is stepped in order")
    while waiting:
        order = sorted(waiting)
        rounds = [waiting[index] for index in order]
        heard = yield _merged(rounds)
        waiting.clear()
        for index, part in zip(order, _split(rounds, heard), strict=True):
            _advance(steps, index, part, waiting, results)
    return tuple(results)


def _advance(
    steps: Sequence[Steps[Any]],
    index: int,
    heard: list[Heard] | None,
    waiting: dict[int, Round],
    results: list[Any],
) -> None:
    try:
        waiting[index] = next(steps[index]) if heard is None else steps[index].send(heard)
    except StopIteration as stop:
        results[index] = stop.value


def _merged(rounds: list[Round]) -> Round:
    if len(rounds) == 1:
        return rounds[0]
    n = next((len(one.lengths) for one in rounds if one.lengths is not None), 0)
    sections = tuple(part for one in rounds for part in one.parts(n or 7))
    lengths = tuple(sum(sizes[i] for _, sizes in sections) for i in range(n)) if n else None
    private: tuple[Words, ...] | None = None
    telling = [one for one in rounds if one.private is not None]
    if telling:
        n = len(telling[0].private or ())
        private = tuple(
            np.concatenate([(one.private or ())[i] for one in telling]) for i in range(n)
        )
    return Round(
        np.concatenate([one.shared for one in rounds]),
        lengths,
        private,
        sum(one.private_length for one in rounds),
        "+".join(one.label for one in rounds),
        sections,
    )


def _split(rounds: list[Round], heard: list[Heard]) -> list[list[Heard]]:
    if len(rounds) == 1:
        return [heard]
    parts: list[list[Heard]] = [[] for _ in rounds]
    for party, one in enumerate(heard):
        at, private_at = 0, 0
        for part, spoken in zip(parts, rounds, strict=True):
            size = spoken.shared.size if spoken.lengths is None else spoken.lengths[party]
            part.append(
                Heard(
                    one.shared[at : at + size],
                    one.private[private_at : private_at + spoken.private_length],
                )
            )
            at += size
            private_at += spoken.private_length
    return parts
