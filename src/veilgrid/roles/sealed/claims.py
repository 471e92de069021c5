"""Who said something else on the way than what its proof shows [sealed 6.3].

The coordination ends on sums of claims: demands, own costs, payments and regrets. The certificate
recomputes each from committed numbers. If the gap exceeds what the claims made of it, somebody's
claims differ from its proof, and here it is found out who: every comparison is one site's own.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np

from veilgrid.mpc import Engine, Shares, Steps
from veilgrid.mpc._prime import apply_matrix
from veilgrid.mpc.bounded import not_negative
from veilgrid.mpc.field import PRIME_FIELD, Words, encode, encode_words
from veilgrid.mpc.prss import Stream
from veilgrid.roles.sealed.certificate import SealedCertificate
from veilgrid.roles.sealed.judge import COST_BITS
from veilgrid.roles.sealed.step_dual import rounded_steps

CLAIM_BITS: Final = 40
"""Binary places of claimed amounts, price units."""

COMBINATIONS: Final = 3
"""Random combinations in which two vectors of demands are compared."""

WEIGHT_BITS: Final = 16

DEMAND_STEPS: Final = 2**12
"""Sum over a day of the steps of ``2**-32`` per-unit that rounding may make between two demands."""

SHARE: Final = 0.25
"""Part of the allowed gap that all sites together may hide in their claims."""

_HONEST_MAX: Final = 2**77


def unlike(
    mpc: Engine,
    found: SealedCertificate,
    answers: Mapping[int, Shares],
    regrets: Mapping[int, Shares],
    times: int,
    allowed: float,
) -> Steps[list[int]]:
    """Open which sites' claims differ from their proofs, or prove what cannot be, by bus.

    Parameters
    ----------
    mpc
        Where to compute.
    found
        The certificate; its sites are all buses in order.
    answers
        By bus, what the site answered last: demands, own cost, payment.
    regrets
        By bus, what it said it would save by its cheapest answer; empty if nobody was asked.
    times
        Number of intervals.
    allowed : price units
        The gap that ends the coordination.
    """
    if not answers:
        return []
    seed = yield from mpc.coin()
    stream = Stream(seed.to_bytes(16, "little"), b"claims")
    whole = rounded_steps(allowed / len(answers), COST_BITS + 1)
    tolerance = rounded_steps(SHARE * allowed / len(answers), COST_BITS + 1)
    add, subtract = PRIME_FIELD.add, PRIME_FIELD.subtract
    up = encode([2 ** (COST_BITS + 1 - CLAIM_BITS)])
    small = mpc.constant([DEMAND_STEPS << WEIGHT_BITS] * COMBINATIONS).data
    near = mpc.constant([tolerance]).data
    rooms: list[Words] = []
    owners: list[int] = []
    for bus, answer in answers.items():
        own = slice(bus * times, (bus + 1) * times)
        shown = np.concatenate([found.demand_p.data[own], found.demand_q.data[own]])
        off = _combined(subtract(shown, np.ascontiguousarray(answer.data[: 2 * times])), stream)
        pairs = [(small, off)]
        for said, proved in ((0, found.own_costs), (1, found.payments)):
            place = 2 * times + said
            claimed = PRIME_FIELD.scale(up, np.ascontiguousarray(answer.data[[place]]))
            pairs.append((near, subtract(claimed, proved.data[[bus]])))
        for most, value in pairs:
            rooms += [subtract(most, value), add(most, value)]
        # No plan costs less than the least, unless the bid contradicts itself.
        rooms.append(add(mpc.constant([whole]).data, found.gaps.data[[bus]]))
        if bus in regrets:
            claimed = PRIME_FIELD.scale(up, regrets[bus].data[:1])
            off = subtract(claimed, found.gaps.data[[bus]])
            rooms += [add(near, off), subtract(near, off)]
        owners += [bus] * (sum(len(one) for one in rooms) - len(owners))
    fine = yield from not_negative(mpc, mpc.wrap(np.concatenate(rooms), _HONEST_MAX), _HONEST_MAX)
    return sorted({bus for bus, is_fine in zip(owners, fine, strict=True) if not is_fine})


def _combined(vector: Words, stream: Stream) -> Words:
    """Return random combinations of all elements, weights below 2**16."""
    count = COMBINATIONS * vector.shape[0]
    words = stream.words((count + 3) // 4)
    weights = words.view(np.uint16)[:count].astype(np.int64)
    matrix = encode_words(weights).reshape(COMBINATIONS, vector.shape[0], 2)
    return np.asarray(apply_matrix(matrix, np.ascontiguousarray(vector)))
