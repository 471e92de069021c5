"""Whether prices are possible ones, and who wished for more than it may if not [sealed 6.6].

A comparison looks at the low bits of a number. A wish that is far too large can make a network
step settle on prices that no dual has, below or above all tariffs. What is concluded from prices
is therefore drawn only from possible ones. If they are not, every wish is compared with its bound;
both are right for numbers of any size.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np

from veilgrid.mpc import Engine, Shares, Steps
from veilgrid.mpc._prime import row_sums
from veilgrid.mpc.circuit import is_negative_anyhow
from veilgrid.mpc.field import PRIME_FIELD, encode_words
from veilgrid.roles.sealed.register import FACTOR_BITS, POWER_BITS, WISH_MAX, Register
from veilgrid.roles.sealed.step_dual import COMPARED_BOUND, Duals, public_words
from veilgrid.roles.sealed.step_set import ActiveSet

ROUNDING: Final = 2.0**-30
"""Price units; by so much a dual that a step settled on may leave its bounds."""


def are_possible(
    mpc: Engine, register: Register, wish_p: Shares, wish_q: Shares, active: ActiveSet
) -> Steps[bool]:
    """Open whether all prices and strengths of a network step keep their bounds."""
    work = Duals(mpc, register, wish_p, wish_q)
    found = work.rough(active)
    if not len(found):
        return True
    duals = [ready.dual for ready in work.ready]
    low, high = (
        np.concatenate([side[list(dual.free)] for dual, side in zip(duals, sides, strict=True)])
        for sides in ([dual.low for dual in duals], [dual.high for dual in duals])
    )
    bits, subtract = POWER_BITS + FACTOR_BITS, PRIME_FIELD.subtract
    rooms = [
        subtract(found, public_words(low / register.unit - ROUNDING, bits)),
        subtract(public_words(high / register.unit + ROUNDING, bits), found),
    ]
    whole = mpc.wrap(np.concatenate(rooms), 1)
    inside, negative = yield from is_negative_anyhow(mpc, whole, COMPARED_BOUND)
    opened = yield from mpc.open_elements(row_sums(negative.data[np.newaxis]))
    return all(inside) and opened == [0]


def too_far(mpc: Engine, register: Register, wishes: Mapping[int, Shares]) -> Steps[list[int]]:
    """Open which sites wish for more than their bounds (:attr:`Register.wish_max`), by bus.

    Parameters
    ----------
    mpc
        Where to compute.
    register
        The public model under which they wished.
    wishes : (active then reactive interval,)
        By bus, of unknown size. Only the number of elements beyond opens: zero for who keeps them.
    """
    buses = sorted(wishes)
    if not buses:
        return []
    most = encode_words(np.concatenate([register.wish_max[:, bus].ravel() for bus in buses]))
    sent = np.concatenate([wishes[bus].data for bus in buses])
    rooms = np.concatenate([PRIME_FIELD.subtract(most, sent), PRIME_FIELD.add(most, sent)])
    whole = mpc.wrap(rooms, 1)
    inside, negative = yield from is_negative_anyhow(mpc, whole, 2 * WISH_MAX)
    shape = (2 * len(buses), 2 * register.interval_count)
    opened = yield from mpc.open_elements(row_sums(negative.data.reshape(*shape, 2)))
    fits = np.array(inside).reshape(shape).all(axis=1) & (np.array(opened) == 0)
    return [bus for place, bus in enumerate(buses) if not fits[[place, len(buses) + place]].all()]
