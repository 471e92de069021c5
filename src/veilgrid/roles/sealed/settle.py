"""The last task of a sealed day: its certificate, and what is paid [sealed 6]."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from veilgrid.mpc import Engine, Mailbox, Shares, Steps, concatenate
from veilgrid.mpc._round import together
from veilgrid.mpc.field import PRIME_FIELD, Words
from veilgrid.roles.sealed.bid import PRICE_MAX, Shape
from veilgrid.roles.sealed.certificate import certify
from veilgrid.roles.sealed.claims import unlike
from veilgrid.roles.sealed.electrical import electrical_check, out_of_reach, untried
from veilgrid.roles.sealed.heard import (
    OWN,
    PAYER,
    Pads,
    bus_of,
    committed,
    heads,
    ranged,
    take_in,
    vector,
)
from veilgrid.roles.sealed.judge import beyond
from veilgrid.roles.sealed.program import AMOUNT_MAX, CLAIM_MAX, Priced
from veilgrid.roles.sealed.register import POWER_MAX, WISH_MAX, Register
from veilgrid.roles.sealed.stack import Stack

GAP_FACTOR: Final = 1.5
"""Multiple of the gap that ends the coordination which the certificate still accepts."""


@dataclass(frozen=True)
class Said:
    """What the sites claimed last, and who has no bid that counts.

    Attributes
    ----------
    allowed : price units
        The gap that ends the coordination. It follows from what sites claim to cost, which their
        proofs show; not from what is certified, in which a fallback's cost is only said.
    """

    answers: Mailbox | None
    regrets: Mailbox | None
    absent: Collection[int]
    allowed: float
    may_narrow: bool = False


def _heard(mpc: Engine, mailbox: Mailbox | None) -> dict[int, Shares]:
    if mailbox is None:
        return {}
    return {
        bus_of(name): vector(mpc, mailbox, name, AMOUNT_MAX) for name in sorted(mailbox.received)
    }


def certificate_program(
    mpc: Engine,
    register: Register,
    shapes: Sequence[Shape],
    bids: Mailbox,
    proofs: Mailbox,
    priced: Priced,
    still: Mapping[int, Shares],
    said: Said,
    pads: Pads,
) -> Steps[dict[str, Any]]:
    """Check the day against the committed bids; open each payment to its site and the payer."""
    proved = yield from take_in(mpc, proofs, PRICE_MAX)
    answers, regrets = (_heard(mpc, mailbox) for mailbox in (said.answers, said.regrets))
    times = register.interval_count
    runs = {bus: shapes[bus].proof_runs for bus in proved.vectors}
    told = {"wish": (heads(priced.heard(mpc), 2 * times), [(2 * times, WISH_MAX)])}
    claimed = [(2 * times, POWER_MAX), (2, CLAIM_MAX)]
    told["answer"] = (heads(answers, 2 * times + 2), claimed)
    told["regret"] = (regrets, [(1, CLAIM_MAX)])
    checks = priced.doubted(mpc, still), ranged(mpc, proved, runs, told)
    doubt, proved = yield from together(*checks)
    if doubt or proved.flags:
        return doubt or proved.refusal  # type: ignore[no-any-return]
    step = yield from priced.duals(mpc, still)
    buses = range(register.bus_count)
    own = committed(mpc, shapes, bids, said.absent)
    stack = Stack.of(shapes, own, [proved.vectors.get(bus) for bus in buses])
    found = yield from certify(mpc, register, stack, np.arange(len(buses), dtype=np.int64), step)
    outside = yield from beyond(mpc, found.windows)
    failed = [count + (bus in outside) for bus, count in enumerate(found.failed)]
    allowed = said.allowed
    plan = found.demand_p, found.demand_q
    differ, places = yield from together(
        unlike(mpc, found, answers, regrets, times, allowed), out_of_reach(mpc, register, *plan)
    )
    is_close = found.gap <= GAP_FACTOR * allowed and not found.exceeded
    electrical: dict[str, Any] = {}
    if not any(failed) and not differ:
        is_shown = said.may_narrow and is_close
        electrical = untried(places)
        if not places:
            electrical = yield from electrical_check(mpc, register, *plan, is_shown=is_shown)
    own_amounts: dict[int, Words] = {}
    if not any(failed) and not differ and "shown" not in electrical:
        # A plan that is planned again is paid by nobody.
        own_amounts = {
            bus: concatenate([found.payments[bus], found.own_costs[bus]]).data
            for bus in pads.buses_of(buses)
        }
        own_amounts[PAYER] = found.payments.data
    _, hidden = yield from pads.open(mpc, PRIME_FIELD.zeros(0), own_amounts)
    return {
        "failed": failed,
        "unlike": differ,
        "is_close": is_close,
        "exceeded": [list(one) for one in found.exceeded],
        "cost": found.cost * register.unit,
        "gap": found.gap * register.unit,
        "rent": found.rent * register.unit,
        "exchange_cost": found.exchange_cost * register.unit,
        "worse_off": found.worse_off,
        "electrical": electrical,
        OWN: hidden,
    }
