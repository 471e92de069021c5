"""Noise that nobody knows and nobody can bias [mpc 5.8].

A uniform secret number is compared with the public distribution function of the discrete
Gaussian; how many steps it has passed is the noise. No party adds anything of its own, so there
is no noise share to lie about.
"""

from decimal import Context, Decimal
from functools import cache

from veilgrid.errors import Finding, InputError
from veilgrid.mpc._round import Steps
from veilgrid.mpc._shares import Shares
from veilgrid.mpc.order import Mpc

DRAW_BITS = 62
"""Each probability is rounded to a multiple of 2**-62."""

SIGMA_MAX = 1000.0


@cache
def gaussian_steps(sigma: float) -> tuple[int, tuple[int, ...]]:
    """Return the least value, and for each value but the last the probability up to it.

    Parameters
    ----------
    sigma : 0.1..1000, steps
        Parameter of the discrete Gaussian, nearly its standard deviation.

    Returns
    -------
    lowest, limits
        Probabilities times ``2**62``, rounded down; the tails beyond ``2**-62`` are cut.

    Raises
    ------
    InputError
        The parameter is out of range.
    """
    if not 0.1 <= sigma <= SIGMA_MAX:
        problem = f"found {sigma}, expected 0.1..{SIGMA_MAX:g} steps"
        raise InputError([Finding("noise", problem, "choose another scale")])
    context = Context(prec=50)
    square = context.multiply(Decimal(2), context.power(Decimal(sigma), Decimal(2)))
    reach = int(9.4 * sigma) + 2
    masses = [context.exp(context.divide(Decimal(-k * k), square)) for k in range(reach + 1)]
    total = masses[0]
    for mass in masses[1:]:
        total = context.add(total, context.multiply(Decimal(2), mass))
    limits, running = [], Decimal(0)
    for value in range(-reach, reach):
        running = context.add(running, masses[abs(value)])
        limits.append(int(context.multiply(context.divide(running, total), Decimal(2**DRAW_BITS))))
    return -reach, tuple(limits)


def discrete_gaussian(mpc: Mpc, count: int, sigma: float) -> Steps[Shares]:
    """Return shares of independent draws from the discrete Gaussian around zero."""
    lowest, limits = gaussian_steps(sigma)
    below = yield from mpc.below_public(limits, DRAW_BITS, count)
    passed = -below.sum(len(limits)) + len(limits)
    return (passed + lowest).claim(-lowest)
