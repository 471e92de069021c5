"""Who pays whom: prices times quantities, in integer micro-units, with the checks [model 6].

Site i pays ``price_p . d + price_q . q``. The substation's bus receives what all others pay and
buys the exchange with the grid above; what is left over is the congestion rent. Payments of all
sites therefore sum to zero, and costs of all sites to the cost of the plan.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from veilgrid.grid.day import Day
from veilgrid.grid.network import Floats

MICRO = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One site's line, integer micro-units of currency.

    Attributes
    ----------
    payment
        To the community; negative = receives.
    cost
        Own devices plus payment; at the substation also the exchange with the grid above.
    cost_alone
        What the site would bear alone at the substation's tariff.
    """

    site: str
    payment: int
    cost: int
    cost_alone: int

    @property
    def is_rational(self) -> bool:
        """Whether the site is not worse off than alone, to 1e-4 of its cost alone or 0.01."""
        return self.cost <= self.cost_alone + max(abs(self.cost_alone) // 10_000, MICRO // 100)


@dataclass(frozen=True, kw_only=True)
class Settlement:
    """All accounts with their checks, integer micro-units.

    Attributes
    ----------
    rent
        What the substation collects beyond its exchange: congestion rent.
    rent_expected
        The same from strengths and bounds of the binding rows, independent of the payments.
    """

    accounts: tuple[Account, ...]
    rent: int
    rent_expected: int

    @property
    def total(self) -> int:
        """Sum of all payments: zero when the budget balances."""
        return sum(account.payment for account in self.accounts)

    @property
    def is_rational(self) -> bool:
        """Whether no site is worse off than alone."""
        return all(account.is_rational for account in self.accounts)


def micro(amount: float) -> int:
    """Round an amount of currency to micro-units, half to even."""
    return round(amount * MICRO)


def settle(
    day: Day,
    setpoints: list[Floats],
    setpoints_alone: list[Floats],
    price_p: Floats,
    price_q: Floats,
    rent_expected: float,
) -> Settlement:
    """Settle a plan at nodal prices.

    Parameters
    ----------
    day
        The data.
    setpoints, setpoints_alone : one (variable,) array a site
        The plan, and what each site would do alone.
    price_p, price_q : (bus, interval), currency per per-unit and interval
        Nodal prices that the network can have.
    rent_expected : currency
        Strengths times bounds of the binding rows.
    """
    demand_p, demand_q = day.demands(setpoints)
    paid = (price_p * demand_p + price_q * demand_q).sum(axis=1)
    return _accounts(day, setpoints, setpoints_alone, paid, demand_p, rent_expected)


def settle_told(
    day: Day,
    setpoints: list[Floats],
    setpoints_alone: list[Floats],
    payments: Mapping[int, float],
    rent_expected: float,
) -> Settlement:
    """Settle a plan by what each site was told that it pays.

    Parameters
    ----------
    day, setpoints, setpoints_alone, rent_expected
        As of :func:`settle`.
    payments : by bus, currency
        Of every site.
    """
    paid = np.array([payments[bus] for bus in range(len(day.sites))])
    demand_p, _ = day.demands(setpoints)
    return _accounts(day, setpoints, setpoints_alone, paid, demand_p, rent_expected)


def settle_alone(day: Day, setpoints: list[Floats]) -> Settlement:
    """Settle contracts of each site with the substation at its tariff."""
    demand_p, _ = day.demands(setpoints)
    paid = np.array([day.exchange_cost(demand) for demand in demand_p])
    root = day.network.tree.root
    upstream = float(paid.sum())
    return _accounts(day, setpoints, setpoints, paid, demand_p, 0.0, upstream, root)


def _accounts(
    day: Day,
    setpoints: list[Floats],
    setpoints_alone: list[Floats],
    paid: Floats,
    demand_p: Floats,
    rent_expected: float,
    upstream: float | None = None,
    root: int | None = None,
) -> Settlement:
    substation = day.network.tree.root if root is None else root
    exchange = day.exchange_cost(demand_p.sum(axis=0)) if upstream is None else upstream
    payments = [micro(amount) for amount in paid]
    collected = sum(payments)
    payments[substation] -= collected
    demand_alone, _ = day.demands(setpoints_alone)
    accounts = []
    for index, site in enumerate(day.sites):
        own = site.cost(setpoints[index]) + (exchange if index == substation else 0.0)
        without = site.cost(setpoints_alone[index]) + day.exchange_cost(demand_alone[index])
        accounts.append(
            Account(
                site=str(site.name),
                payment=payments[index],
                cost=micro(own) + payments[index],
                cost_alone=micro(without),
            )
        )
    return Settlement(
        accounts=tuple(accounts),
        rent=collected - micro(exchange),
        rent_expected=micro(rent_expected),
    )
