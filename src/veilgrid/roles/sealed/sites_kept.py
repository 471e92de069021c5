"""How a day ended for the sites of a process, and what they keep on the way [sealed 4.6]."""

from typing import Any

import msgspec

from veilgrid.roles.sealed.message import Began, Wished


class SiteOutcome(msgspec.Struct, frozen=True, tag=True):
    """How a day ended for the sites of a group; arrays as octets of float64.

    Attributes
    ----------
    setpoints : by flexible bus, (variable,), per-unit
    payments, own_costs : by bus, currency
    price_p, price_q : by flexible bus, (interval,), currency per per-unit and interval
    public
        What opened to all.
    """

    setpoints: dict[int, bytes]
    payments: dict[int, float]
    own_costs: dict[int, float]
    price_p: dict[int, bytes]
    price_q: dict[int, bytes]
    public: dict[str, Any]


class Proved(msgspec.Struct, frozen=True, tag=True):
    """Record of sites: the plan that they are about to prove, without what they pay.

    Attributes
    ----------
    task
        In which, of an attempt.
    """

    attempt: int
    task: int
    plan: SiteOutcome


SiteRecord = Began | Wished | Proved | SiteOutcome
