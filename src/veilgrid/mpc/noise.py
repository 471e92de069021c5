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
from veilgrid.mpc.form import Form, number, range_bits
from veilgrid.mpc.order import Mpc

DRAW_BITS = 62
"""Each probability is rounded to a multiple of 2**-62."""

SIGMA_MAX = 4000.0


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


def gaussian_slack(sigma: float) -> float:
    """Return how far the drawn distribution is from the exact one, as a probability."""
    return (19 * sigma + 5) * 2.0**-DRAW_BITS


def discrete_gaussian(mpc: Mpc, count: int, sigma: float) -> Steps[Shares]:
    """Return shares of independent draws from the discrete Gaussian around zero."""
    lowest, limits = gaussian_steps(sigma)
    below = yield from mpc.below_public(limits, DRAW_BITS, count)
    passed = -below.sum(len(limits)) + len(limits)
    return (passed + lowest).claim(-lowest)


def coarsened(mpc: Mpc, x: Shares, factor: int, shift: int) -> Steps[Shares]:
    """Return ``x * factor`` divided by ``2**shift`` and rounded down.

    Two figures that differ by at most ``d`` differ by at most ``factor * d / 2**shift``, rounded
    up, afterwards. Noise is added to the coarse figure, so no finer digit tells anything.
    """
    scaled = x * factor
    if shift == 0:
        return scaled
    return (yield from mpc.truncate(scaled, shift))


def with_noise(form: Form, bound: int) -> Form:
    """Return a form that carries noise within ``-bound..bound`` as one more value [mpc 5.8].

    Whoever sends it cannot shift the result by more than the bound.
    """
    noise = number(-bound, bound)
    size = form.bit_count
    rows = [(*row, *[0] * noise.bit_count) for row in form.weights]
    rows.append((*[0] * size, *noise.weights[0]))
    equalities = tuple(((*row, *[0] * noise.bit_count), total) for row, total in form.equalities)
    return Form(size + noise.bit_count, tuple(rows), (*form.offsets, *noise.offsets), equalities)


def noise_bits(form: Form, bound: int, noise: int) -> list[int]:
    """Return the bits of noise for the last value of a form of :func:`with_noise`."""
    size = number(-bound, bound).bit_count
    return range_bits(noise + bound, form.weights[-1][-size:])
