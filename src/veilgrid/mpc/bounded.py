"""Proofs on shares that no element of a client's vector is out of range [mpc 7.8].

Comparisons are right only for numbers within their bound, and a client can send any element of the
field. So public random subsets of each vector are added up, drawn after all vectors are fixed. A
sum of honest elements is small; of two sums that differ by one element beyond the bound, at most
one is. Such an element survives a draw with probability at most one half.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from veilgrid.errors import invariant
from veilgrid.mpc._prime import apply_matrix, row_sums
from veilgrid.mpc._round import Steps
from veilgrid.mpc._shares import Shares
from veilgrid.mpc.circuit import is_negative_anyhow
from veilgrid.mpc.engine import Engine
from veilgrid.mpc.field import PRIME_FIELD, Words, encode_words
from veilgrid.mpc.prss import Stream

DRAWS: Final = 40
"""An element out of range passes with probability at most 2**-40."""

GROUP_MAX: Final = 1 << 10
"""Elements that are added up together; what passes exceeds its bound by at most twice as much."""


@dataclass(frozen=True, slots=True)
class Part:
    """A client's elements in order, and what each run of them should stay below.

    Attributes
    ----------
    data
        Shares of the vector, of unknown size.
    runs
        (number of elements, bound) each, together as long as the vector.
    """

    data: Words
    runs: Sequence[tuple[int, int]]

    def groups(self) -> list[tuple[Words, int]]:
        """Return the elements of each bound together, with what their sums stay below.

        They are not scaled to one bound: a fraction of the field, scaled, looks small.
        """
        ends = np.cumsum([count for count, _ in self.runs])
        invariant(bool(len(ends)) and int(ends[-1]) == self.data.shape[0], "runs cover a vector")
        pieces = np.split(self.data, ends[:-1])
        out = []
        for bound in sorted({bound for _, bound in self.runs}):
            own = [piece for piece, (_, its) in zip(pieces, self.runs, strict=True) if its == bound]
            elements = np.concatenate(own)
            for first in range(0, elements.shape[0], GROUP_MAX):
                group = np.ascontiguousarray(elements[first : first + GROUP_MAX])
                out.append((group, group.shape[0] * bound))
        return out


def out_of_range(mpc: Engine, parts: Mapping[str, Part]) -> Steps[list[str]]:
    """Open which clients sent an element beyond its bound; nothing else opens.

    Parameters
    ----------
    mpc
        Where to compute. All vectors must have been agreed on before.
    parts
        By client, vectors and bounds. In a vector that passes no element is larger than its bound
        times twice :data:`GROUP_MAX`; honest ones always pass.

    Notes
    -----
    Let an element exceed twice ``edge``, what honest sums of its group stay below. Fix all other
    choices: the sums with and without it differ by just this element, so they are not both within
    ``[-edge, edge]``. The choice is fair, hence one draw passes with probability at most 1/2,
    :data:`DRAWS` independent ones with ``2**-40``. (Signs in place of subsets would not do: halves
    of the field, an even number of them, add up to small numbers whatever their signs.)
    """
    asked = [(name, *group) for name in sorted(parts) for group in parts[name].groups()]
    if not asked:
        return []
    honest_max = max(edge for *_, edge in asked)
    seed = yield from mpc.coin()
    stream = Stream(seed.to_bytes(16, "little"), b"bounded")
    total = np.concatenate([_subset_sums(elements, stream) for _, elements, _ in asked])
    ceiling = mpc.constant([edge for *_, edge in asked for _ in range(DRAWS)]).data
    both = [PRIME_FIELD.subtract(ceiling, total), PRIME_FIELD.add(ceiling, total)]
    rooms = mpc.wrap(np.concatenate(both), 1)
    inside, negative = yield from is_negative_anyhow(mpc, rooms, 2 * honest_max)
    wrong = row_sums(negative.data.reshape(2 * len(asked), DRAWS, 2))
    opened = yield from mpc.open_elements(wrong)
    fits = np.array(inside).reshape(-1, DRAWS).all(axis=1)
    passed = fits & (np.array(opened) == 0)
    return sorted({name for k, (name, *_) in enumerate(asked * 2) if not passed[k]})


def _subset_sums(elements: Words, stream: Stream) -> Words:
    """Return :data:`DRAWS` sums of random subsets."""
    count = DRAWS * elements.shape[0]
    words = stream.words((count + 63) // 64)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[:count]
    chosen = encode_words(bits.astype(np.int64)).reshape(DRAWS, elements.shape[0], 2)
    return np.asarray(apply_matrix(chosen, elements))


def not_negative(mpc: Engine, values: Shares, honest_max: int) -> Steps[list[bool]]:
    """Open which elements are zero or more, right also for those of any size.

    Honest elements stay below ``honest_max`` in magnitude. What is larger than about
    ``2**125`` counts as negative.
    """
    inside, negative = yield from is_negative_anyhow(mpc, values, honest_max)
    opened = yield from mpc.open(negative)
    return [fits and not bit for fits, bit in zip(inside, opened, strict=True)]
