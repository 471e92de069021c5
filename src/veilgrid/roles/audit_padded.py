"""Attacks on what opens to one site behind its pads, where all parties see it [sealed 3.4].

A coalition has what opened and the seeds that the site gave its members: it takes off what of the
pads these stand for, subtracts one task from the next, and fits the rest.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from veilgrid.grid.day import Day
from veilgrid.grid.network import Floats
from veilgrid.mpc.field import PRIME_FIELD, Words, decode, words_of
from veilgrid.mpc.prss import client_words
from veilgrid.roles.audit_score import Recovered, Target, beside, best, fitted, is_told_by_half
from veilgrid.roles.sealed.heard import BID, PAYER, client_of
from veilgrid.roles.sealed.judge import COST_BITS
from veilgrid.roles.sealed.kinds import CERTIFICATE, PULL, WISH
from veilgrid.roles.sealed.register import FACTOR_BITS, POWER_BITS
from veilgrid.roles.sealed.view import Views

FITTED_MIN: Final = 8
"""Numbers from which on something is fitted: a fit to fewer is luck."""


BEHIND_PADS: Final = {
    WISH: "its prices",
    PULL: "the part of its prices that comes from rows",
    CERTIFICATE: "its payment and own cost",
}
"""What opens to one site, by kind of task."""


class _Told(NamedTuple):
    """What opened about a site in one task behind the pads of a bus, pads taken off."""

    quantity: str
    bus: int
    places: slice
    task: int
    factor: float
    truth: Floats
    unit: str


def padded_elements(views: Views) -> list[Words]:
    """Return all that opened behind pads, one array a task, sites in order."""
    return [
        np.concatenate([_elements(own[bus]) for bus in sorted(own)])
        for _, own in sorted(views.padded.items())
    ]


def _elements(octets: bytes) -> Words:
    return PRIME_FIELD.from_words(words_of(octets))


def known_pads(views: Views, coalition: Sequence[int], site: int, task: int, count: int) -> Words:
    """Return the part of a site's pads that a coalition's seeds stand for.

    Parameters
    ----------
    views
        The recorded day.
    coalition
        Places of parties.
    site : index
        Whose pads.
    task
        For which task.
    count
        How many numbers opened in it.
    """
    bids = next(number for number, kind, _ in views.tasks if kind == "bids")
    name, total, seen = client_of(site, BID), PRIME_FIELD.zeros(count), set()
    for place in coalition:
        party = views.parties[place]
        purpose = party.agreement.session(task)
        for members, seed in party.mailbox(bids).received[name].seeds.items():
            if members not in seen:
                seen.add(members)
                words = client_words(seed, members, 2 * count, purpose)
                total = PRIME_FIELD.add(total, PRIME_FIELD.from_words(words))
    return np.asarray(total)


def attack_padded(
    day: Day, views: Views, site: int, coalition: Sequence[int], honest: Views | None = None
) -> list[Recovered]:
    """Read a site's last prices, their change, and its payment off what opened behind its pads.

    Parameters
    ----------
    day, views, site
        As of any audit of `sealed`.
    coalition
        Places of the parties that put their seeds together; more than the bound, and they succeed.
    honest
        Where the truth is read, if the views do not hold it behind the site's own pads.
    """
    role = " and ".join(f"party {place + 1}" for place in coalition)
    role += ", beyond the bound" if len(coalition) > views.degree else ""
    found, rows = list[tuple[_Told, Words]](), list[Recovered]()
    for told in _told(day, honest or views, site):
        elements = _elements(views.padded[told.task][told.bus])
        known = known_pads(views, coalition, told.bus, told.task, len(elements))
        elements, known = elements[told.places], known[told.places]
        rest = PRIME_FIELD.subtract(elements, known)
        opened, left = [_numbers(part) * told.factor for part in (elements, rest)]
        found.append((told, rest))
        places = np.arange(len(told.truth))
        target = Target(told.quantity, told.task, "", places, told.truth, told.unit, 1.0)
        guesses = {
            "what opened, read as the number": opened,
            "what is left of it when known seeds are taken off": left,
        }
        if len(told.truth) >= FITTED_MIN and not is_told_by_half(told.truth):
            how = "least squares on both, fitted to half of the truth"
            guesses[how] = fitted([opened, left], told.truth)
        rows.append(best([beside(target, role, guess, how) for how, guess in guesses.items()]))
    return [*rows, *_change(found, role)]


def _change(found: Sequence[tuple[_Told, Words]], role: str) -> list[Recovered]:
    """Subtract the last two openings of prices: a pad that served twice would drop out."""
    prices = [(told, rest) for told, rest in found if told.quantity.startswith("its prices")]
    if len(prices) < 2 or len(prices[0][0].truth) != len(prices[1][0].truth):
        return []
    (last, mine), (before, other) = prices
    truth = last.truth - before.truth
    places = np.arange(len(truth))
    target = Target("change of its prices", last.task, "", places, truth, last.unit, 1.0)
    guess = _numbers(PRIME_FIELD.subtract(mine, other)) * last.factor
    return [beside(target, role, guess, "difference of two openings, known seeds taken off")]


def _told(day: Day, views: Views, site: int) -> list[_Told]:
    """Return the last two openings of prices, the last of all else, newest first."""
    register, kinds = views.public.register, {n: kind for n, kind, _ in views.tasks}
    price = register.unit / 2.0 ** (POWER_BITS + FACTOR_BITS)
    hours = day.horizon.hours * day.network.base_mva
    amount = register.unit / 2.0 ** (COST_BITS + 1)
    found: dict[str, list[_Told]] = {kind: [] for kind in (WISH, PULL, CERTIFICATE)}
    paid = list[_Told]()
    for task, own in sorted(views.padded.items(), reverse=True):
        kind = kinds.get(task, "")
        if kind not in found or site not in own:
            continue
        is_price, name = kind != CERTIFICATE, BEHIND_PADS[kind]
        earlier = ", the time before" if found[kind] else ""
        unit = f"{day.currency}/MWh" if is_price else day.currency
        factor = price / hours if is_price else amount
        one = _read(views, f"{name}{earlier}", site, slice(None), task, factor, unit)
        found[kind].append(one)
        if PAYER in own:
            name, own_place = "its payment, opened to the payer", slice(site, site + 1)
            paid.append(_read(views, name, PAYER, own_place, task, factor, unit))
    return [*found[WISH][:2], *found[PULL][:1], *found[CERTIFICATE][:1], *paid[:1]]


def read_prices(views: Views, site: int) -> Floats | None:
    """Return a site's active prices of the last wish, currency per per-unit, all pads off."""
    register, kinds = views.public.register, {n: kind for n, kind, _ in views.tasks}
    tasks = [n for n, own in sorted(views.padded.items()) if kinds.get(n) == WISH and site in own]
    if not tasks:
        return None
    factor = register.unit / 2.0 ** (POWER_BITS + FACTOR_BITS)
    found = _read(views, "its prices", site, slice(None), tasks[-1], factor, "currency")
    return found.truth[: register.interval_count]


def _read(
    views: Views, quantity: str, bus: int, places: slice, task: int, factor: float, unit: str
) -> _Told:
    """Take all pads of a bus off, as nobody can who has no seeds of all parties."""
    elements = _elements(views.padded[task][bus])
    pads = known_pads(views, range(len(views.parties)), bus, task, len(elements))
    truth = _numbers(PRIME_FIELD.subtract(elements, pads)[places]) * factor
    return _Told(quantity, bus, places, task, factor, truth, unit)


def _numbers(elements: Words) -> Floats:
    return np.array([float(value) for value in decode(np.ascontiguousarray(elements))])


__all__ = ["attack_padded", "known_pads", "padded_elements", "read_prices"]
