"""A whole round of the market on shares: flags, caps, price, awards [market 2, 5].

What opens to all: the price, the volume and who is flagged as what. What an order trades opens to
its owner.
"""

from dataclasses import dataclass

from veilgrid.mpc._round import Steps, together
from veilgrid.mpc._shares import concatenate
from veilgrid.mpc.bulk import BulkBatch
from veilgrid.mpc.layout import Integers
from veilgrid.mpc.order import Mpc
from veilgrid.mpc.padded import open_padded
from veilgrid.risk.auction import Price
from veilgrid.risk.award import awarding
from veilgrid.risk.conduct import Groups, afterwards, kinds_of, screened


@dataclass(frozen=True, slots=True)
class Traded:
    """What all parties tell about a round.

    Attributes
    ----------
    price
        With the volume.
    kinds
        By number of the participant, what it is flagged as.
    draw
        Seed of the sample from which follows what is usual.
    padded
        What each order trades, readable for its owner: :func:`~veilgrid.mpc.padded.read_padded`.
    """

    price: Price
    kinds: dict[int, tuple[str, ...]]
    draw: int
    padded: bytes


def trade(
    mpc: Mpc,
    batch: BulkBatch,
    groups: Groups,
    weights: Integers,
    rule: str,
    unit: int = 1,
    *,
    screens: bool = True,
) -> Steps[Traded]:
    """Run a round.

    Parameters
    ----------
    mpc
        Engine or plain numbers.
    batch
        Validated orders with the quantities asked for.
    groups
        Who owns which order.
    weights : (order,), >= 0
        Public, fixed before the round: what each quantity is multiplied by.
    rule
        :data:`~veilgrid.risk.auction.UNIFORM` or :data:`~veilgrid.risk.auction.REDUCTION`.
    unit
        The weight that stands for one.
    screens
        Whether flags and caps are worked out; without, quantities count as they are.
    """
    if not screens:
        found = yield from awarding(mpc, batch, groups.is_buy, weights, rule)
        awards = yield from found.rest
        told, padded = yield from open_padded(mpc, batch, awards, found.volume)
        return Traded(found.price(told[0]), {}, 0, padded)
    before = yield from screened(mpc, batch, groups)
    found = yield from awarding(mpc, before.batch, groups.is_buy, weights, rule)
    awards, marks = yield from together(
        found.rest,
        afterwards(mpc, groups, before.totals, found.volume, found.willing, unit),
    )
    told, padded = yield from open_padded(mpc, batch, awards, concatenate([found.volume, marks]))
    kinds = dict(before.kinds)
    if told[0]:  # Where nothing is traded, nobody would have gained.
        for owner, more in kinds_of(groups, told[1:]).items():
            kinds[owner] = (*kinds.get(owner, ()), *more)
    return Traded(found.price(told[0]), kinds, before.draw, padded)
