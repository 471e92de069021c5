"""What sites and the coordinator of scheme ``exchange`` tell each other [exchange 9]."""

import msgspec

from veilgrid.admm.outcome import RunStatus
from veilgrid.grid.day import Day


class Offer(msgspec.Struct, frozen=True, tag=True):
    """What the coordinator sends to a site: (interval,) arrays of float64.

    ``powers`` (interval,) are signed octets: to these powers of
    :data:`veilgrid.admm.accelerate.BALANCE_FACTOR` the site's penalties are multiplied.
    """

    iteration: int
    price_p: bytes
    price_q: bytes
    target_p: bytes
    target_q: bytes
    powers: bytes


class Answer(msgspec.Struct, frozen=True, tag=True):
    """What a site sends back: (interval,) arrays of float64, and what its own devices cost."""

    iteration: int
    demand_p: bytes
    demand_q: bytes
    cost: float


class Check(msgspec.Struct, frozen=True, tag=True):
    """Asks a site how far its last answer is from its cheapest one at these prices alone."""

    iteration: int
    price_p: bytes
    price_q: bytes


class Regret(msgspec.Struct, frozen=True, tag=True):
    """What a site would save by its cheapest answer, currency, >= 0; sums to the sites' gap."""

    iteration: int
    amount: float


class Close(msgspec.Struct, frozen=True, tag=True):
    """Ends a run. ``iteration`` names the receiver's answer that is in the plan, -1 = none."""

    iteration: int
    status: str


Message = Offer | Answer | Check | Regret | Close


def traffic(
    day: Day,
    status: RunStatus,
    iterations: int,
    checked: list[int],
    *,
    are_limits_absent: bool,
) -> tuple[int, int]:
    """Count the messages of a run between machines and their octets [exchange 9].

    Parameters
    ----------
    day
        What was planned.
    status
        How it ended.
    iterations, checked
        How many there were, and those whose plan was certified.
    are_limits_absent
        Then reactive parts stay empty.
    """
    part = bytes(8 * day.interval_count)
    other = b"" if are_limits_absent else part
    powers = bytes(day.interval_count)
    flexible, count = len(day.flexible), len(day.sites)
    sent: list[tuple[int, Message]] = [(count - flexible, Answer(0, part, other, 0.0))]
    for iteration in range(1, iterations + 1):
        if iteration > 1:  # First answers are to the tariff and need no offer.
            sent.append((flexible, Offer(iteration, part, other, part, other, powers)))
        sent.append((flexible, Answer(iteration, part, other, 0.0)))
    for iteration in checked:
        sent += [(flexible, Check(iteration, part, other)), (flexible, Regret(iteration, 0.0))]
    sent.append((count - flexible, Close(0, status)))
    sent.append((flexible, Close(iterations, status)))
    return (
        sum(number for number, _ in sent),
        sum(number * len(msgspec.msgpack.encode(message)) for number, message in sent),
    )
