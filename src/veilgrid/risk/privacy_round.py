"""One private figure, computed by a committee: inputs, noise, answer [privacy 2.2].

Sums are released with noise on the sum; medians, quantiles, trimmed means and tail means are read
off a histogram whose counts carry noise. Nothing but the noisy numbers is opened.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from veilgrid.errors import RunAborted, invariant
from veilgrid.mpc._round import Steps
from veilgrid.mpc._shares import Shares, concatenate
from veilgrid.mpc.client import Mailbox
from veilgrid.mpc.engine import Engine
from veilgrid.mpc.form import Form, number, range_bits
from veilgrid.mpc.intake import intake
from veilgrid.mpc.noise import coarsened, discrete_gaussian, noise_bits, with_noise
from veilgrid.mpc.order import Mpc
from veilgrid.mpc.party import Program
from veilgrid.risk.privacy import Guarantee, Plan, Who, is_counted, plan_noise, predicted_error
from veilgrid.risk.privacy_sampler import discrete_gaussian as gaussian_draws
from veilgrid.risk.privacy_sampler import skellam
from veilgrid.secret import Randomness

Floats = npt.NDArray[np.float64]

BINS: Final = 64
NOISE: Final = "noise of party "


@dataclass(frozen=True, slots=True)
class Source:
    """A device and what is proved about its input.

    Attributes
    ----------
    name
    lower, upper : steps
        Bounds of its reading, checked on shares.
    weight
        A public whole number, fixed before the round.
    """

    name: str
    lower: int
    upper: int
    weight: int = 1


@dataclass(frozen=True, slots=True)
class PrivateQuestion:
    """A figure, its devices and the noise that was planned for it.

    Attributes
    ----------
    function
        ``sum``, ``mean``, ``weighted-mean``, ``median``, ``quantile``, ``trimmed-mean``, ``cvar``.
    level : 0..1
        Of the quantile, of the tail mean, or the part trimmed off each end.
    side
        Which tail the tail mean is of, ``upper`` or ``lower``.
    sources
    who
        Who takes part.
    plan
        How the noise is made.
    edges : (bin + 1,), steps
        Of the histogram; empty for sums.
    """

    function: str
    level: float
    side: str
    sources: tuple[Source, ...]
    who: Who
    plan: Plan
    edges: tuple[int, ...] = ()

    @property
    def weights(self) -> dict[str, int]:
        """Return the weight of each device in the figure."""
        is_weighted = self.function == "weighted-mean" or bool(self.edges)
        return {one.name: one.weight if is_weighted else 1 for one in self.sources}


def ask(
    function: str,
    sources: Sequence[Source],
    guarantee: Guarantee,
    who: Who,
    *,
    mode: str = "committee",
    level: float = 0.5,
    side: str = "upper",
) -> PrivateQuestion:
    """Plan a private figure.

    Parameters
    ----------
    function, level, side
        See :class:`PrivateQuestion`.
    sources
        Who is asked. Their bounds and weights are the only thing that the noise depends on.
    guarantee, who, mode
        See :func:`~veilgrid.risk.privacy.plan_noise`.

    Raises
    ------
    InputError
        The function allows no useful noise, or the promise cannot be kept.
    """
    listed = tuple(sources)
    invariant(len(listed) > 0, "somebody is asked")
    if is_counted(function):
        # One device moves its weight from one bin to another: two numbers, each by its weight.
        largest = max(one.weight for one in listed)
        total = sum(one.weight for one in listed)
        plan = plan_noise(mode, guarantee, who, largest, numbers=2, bound=total)
        return PrivateQuestion(function, level, side, listed, who, plan, _edges(listed))
    weighted = function == "weighted-mean"
    weights = [one.weight if weighted else 1 for one in listed]
    reach = [w * (one.upper - one.lower) for w, one in zip(weights, listed, strict=True)]
    bound = sum(
        w * max(abs(one.lower), abs(one.upper)) for w, one in zip(weights, listed, strict=True)
    )
    if mode == "local":
        reach = [one.upper - one.lower for one in listed]
    squares = sum(w * w for w in weights)
    plan = plan_noise(mode, guarantee, who, max(*reach, 1), bound=bound, squares=squares)
    return PrivateQuestion(function, level, side, listed, who, plan)


def _edges(sources: Sequence[Source]) -> tuple[int, ...]:
    low, high = min(one.lower for one in sources), max(one.upper for one in sources)
    width = max(high - low + 1, BINS)  # the last edge lies beyond the highest reading
    return tuple(low + width * k // BINS for k in range(BINS + 1))


def error_of(question: PrivateQuestion) -> float:
    """Return the error to expect from noise alone, before anything is computed.

    Of a sum or mean: standard deviation relative to a fleet in the middle of its bounds. Of what
    is read off a histogram: by what part of the devices the rank may be off.
    """
    if question.edges:
        total = sum(one.weight for one in question.sources)
        return float(question.plan.noise_sd * (BINS / 2) ** 0.5 / total)
    weights = question.weights
    ranges = [float(weights[one.name] * (one.upper - one.lower)) for one in question.sources]
    return predicted_error(question.plan.noise_sd, ranges) if sum(ranges) else 0.0


# -- inputs --------------------------------------------------------------------------------------


def forms_of(question: PrivateQuestion) -> dict[str, Form]:
    """Return what each device may send, and what each party may send as noise."""
    plan, out = question.plan, {}
    for one in question.sources:
        invariant(not one.name.startswith(NOISE), "no device is called like a party's noise")
        out[one.name] = _form(question, one)
    if plan.mode == "parties":
        one_number = number(-plan.share_bound, plan.share_bound)
        form = one_number
        for _ in range(BINS - 1 if question.edges else 0):
            form = _joined(form, one_number)
        for party in range(1, question.who.parties + 1):
            out[f"{NOISE}{party}"] = form
    return out


def _form(question: PrivateQuestion, source: Source) -> Form:
    plan = question.plan
    if question.edges:
        return _bins_form(source, question.edges)
    if plan.mode == "local":
        # One number, noise included: not even all parties together see the reading.
        return number(*local_bounds(plan, source))
    form = number(source.lower, source.upper)
    return with_noise(form, plan.share_bound) if plan.mode == "devices" else form


def local_bounds(plan: Plan, source: Source) -> tuple[int, int]:
    """Return the bounds of a coarse reading with a device's own noise."""
    low, high = rounded(plan, source.lower), rounded(plan, source.upper)
    return low - plan.share_bound, high + plan.share_bound


def rounded(plan: Plan, value: int) -> int:
    """Return a reading in coarse steps."""
    return (value * plan.factor) >> plan.shift


def _joined(form: Form, other: Form) -> Form:
    left, right = form.bit_count, other.bit_count
    rows = [(*row, *[0] * right) for row in form.weights]
    rows += [(*[0] * left, *row) for row in other.weights]
    return Form(left + right, tuple(rows), (*form.offsets, *other.offsets))


def _bins_form(source: Source, edges: Sequence[int]) -> Form:
    """Return the form of a one in exactly one of the bins that touch the device's bounds."""
    allowed = _allowed(source, edges)
    rows = tuple(tuple(int(k == b) for b in allowed) for k in range(BINS))
    return Form(len(allowed), rows, (0,) * BINS, (((1,) * len(allowed), 1),))


def _bin(value: int, edges: Sequence[int]) -> int:
    return min(max(int(np.searchsorted(edges, value, side="right")) - 1, 0), BINS - 1)


def _allowed(source: Source, edges: Sequence[int]) -> range:
    return range(_bin(source.lower, edges), _bin(source.upper, edges) + 1)


def inputs_of(
    question: PrivateQuestion, values: dict[str, int], randomness: Randomness
) -> dict[str, list[int]]:
    """Return the bits that devices and parties send; each draws its own noise.

    Parameters
    ----------
    question
        What is asked.
    values : by device, steps
        Readings; a device that is missing sends nothing, one out of its bounds will be found out.
    randomness
        Where noise is drawn from.
    """
    forms, plan = forms_of(question), question.plan
    out: dict[str, list[int]] = {}
    asked = [one for one in question.sources if one.name in values]
    noises = shares_of_noise(plan, len(asked), randomness)
    for one, noise in zip(asked, noises, strict=True):
        form, value = forms[one.name], values[one.name]
        if plan.mode == "local":
            # A device cannot be caught lying here, so an honest one keeps its own bounds.
            within = min(max(value, one.lower), one.upper)
            out[one.name] = range_bits(
                rounded(plan, within) + noise - form.offsets[0], form.weights[0]
            )
            continue
        bits = _reading_bits(one, value, form, question.edges)
        if plan.mode == "devices":
            bits += noise_bits(form, plan.share_bound, noise)
        out[one.name] = bits
    if plan.mode == "parties":
        count = BINS if question.edges else 1
        drawn = shares_of_noise(plan, count * question.who.parties, randomness)
        single = number(-plan.share_bound, plan.share_bound)
        for party in range(question.who.parties):
            own = drawn[party * count : (party + 1) * count]
            coded = [range_bits(noise + plan.share_bound, single.weights[0]) for noise in own]
            out[f"{NOISE}{party + 1}"] = [bit for bits in coded for bit in bits]
    return out


def _reading_bits(source: Source, value: int, form: Form, edges: Sequence[int]) -> list[int]:
    if not edges:
        size = number(source.lower, source.upper).bit_count
        return range_bits(value - source.lower, form.weights[0][:size])
    allowed = _allowed(source, edges)
    is_valid = source.lower <= value <= source.upper
    return [int(is_valid and _bin(value, edges) == b) for b in allowed]


def shares_of_noise(plan: Plan, count: int, randomness: Randomness) -> list[int]:
    """Draw shares of noise; one beyond its bound is drawn again."""
    if plan.mode == "committee":
        return [0] * count
    out: list[int] = []
    while len(out) < count:
        missing = count - len(out)
        if plan.mode == "local":
            drawn = gaussian_draws(randomness, plan.share_variance, missing)
        else:
            drawn = skellam(randomness, plan.share_variance, missing).tolist()
        out += [noise for noise in drawn if abs(noise) <= plan.share_bound]
    return out


# -- the round -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PrivateRound:
    """A question, and how many devices must have valid readings before anything opens."""

    question: PrivateQuestion
    count_min: int


def program_of(round_: PrivateRound, mailbox: Mailbox) -> Program:
    """Return a party's program: check inputs, add noise, open.

    Its result maps ``numbers`` to the opened integers, ``clients`` to the devices that counted,
    ``flags`` to why others did not, and ``silent`` to parties without valid noise.
    """
    question, count_min = round_.question, round_.count_min

    def program(mpc: Engine) -> Steps[dict[str, object]]:
        batch = yield from intake(mpc, mailbox, count_min)
        devices = {k: v for k, v in batch.values.items() if not k.startswith(NOISE)}
        noises = [v for k, v in batch.values.items() if k.startswith(NOISE)]
        silent = [name for name in batch.flags if name.startswith(NOISE)]
        check_presence(question, len(devices), len(silent), count_min)
        opened = yield from released(mpc, question, devices, noises)
        return {
            "numbers": [str(value) for value in opened],
            "clients": list(devices),
            "flags": {k: v for k, v in batch.flags.items() if k not in silent},
            "replaced": list(batch.replaced),
            "silent": [name.removeprefix(NOISE) for name in silent],
        }

    return program


def check_presence(question: PrivateQuestion, devices: int, silent: int, count_min: int) -> None:
    """End the computation where too few add readings or noise."""
    who, plan = question.who, question.plan
    if devices < count_min:
        raise RunAborted(f"only {devices} valid readings, at least {count_min} are needed")
    if plan.mode == "parties" and silent > who.degree:
        raise RunAborted(f"{silent} parties added no valid noise, at most {who.degree} may fail")
    floor = int(who.honest_share * who.devices)
    if plan.mode == "devices" and devices < floor:
        raise RunAborted(f"only {devices} devices added noise, at least {floor} are needed")


def released(
    mpc: Mpc, question: PrivateQuestion, devices: dict[str, Shares], noises: Sequence[Shares]
) -> Steps[list[int]]:
    """Open the figure with its noise, in coarse steps.

    Parameters
    ----------
    mpc
        Engine or plain numbers.
    question
        What is asked.
    devices
        By device, shares of its reading or bins, and of its noise where it adds some.
    noises
        Shares of each party's noise, one number a figure.
    """
    plan, weights = question.plan, question.weights
    factors = np.array([weights[name] for name in devices], np.int64)
    width = BINS if question.edges else 1
    stacked = concatenate(devices.values())
    per_device = len(stacked) // len(devices)
    if plan.mode == "local":
        return (yield from mpc.open(stacked.weighted_sum(factors)))
    columns = [stacked[k::per_device].weighted_sum(factors) for k in range(width)]
    figures = yield from coarsened(mpc, concatenate(columns), plan.factor, plan.shift)
    if plan.mode == "committee":
        drawn = yield from discrete_gaussian(mpc, width, plan.charge.sigma)
        figures = figures + drawn
    elif plan.mode == "devices":
        figures = figures + stacked[1::per_device].sum()
    else:
        for noise in noises:
            figures = figures + noise
    return (yield from mpc.open(figures))


# -- the answer ----------------------------------------------------------------------------------


def answer_of(question: PrivateQuestion, numbers: Sequence[int], clients: Sequence[str]) -> float:
    """Return the figure in steps from what was opened; nothing secret is used."""
    plan, weights = question.plan, question.weights
    total = sum(weights[name] for name in clients)
    # Local readings were rounded down one by one: half a coarse step is missing for each.
    figures = [plan.steps(value, total if plan.mode == "local" else 1) for value in numbers]
    if question.edges:
        return read_off(question.function, question.level, figures, question.edges, question.side)
    if question.function == "sum":
        return figures[0]
    return figures[0] / total


def read_off(
    function: str,
    level: float,
    counts: Sequence[float],
    edges: Sequence[int],
    side: str = "upper",
) -> float:
    """Return a quantile, trimmed mean or mean of the upper tail of a noisy histogram.

    Parameters
    ----------
    function
        ``median``, ``quantile``, ``trimmed-mean`` or ``cvar``.
    level : 0..1
        Of the quantile; part trimmed off each end; the tail mean is that of what lies above it.
    counts : (bin,)
        With noise; negative ones count as 0.
    edges : (bin + 1,)
        Where bins begin and end.
    side
        Which tail the tail mean is of.
    """
    masses = np.maximum(np.asarray(counts, np.float64), 0.0)
    total = float(masses.sum())
    if total <= 0:
        return float(edges[0] + edges[-1]) / 2
    shares = np.concatenate([[0.0], np.cumsum(masses) / total])
    places = np.asarray(edges, np.float64)
    match function:
        case "median":
            return _inverse(shares, places, 0.5)
        case "quantile":
            return _inverse(shares, places, level)
        case "trimmed-mean":
            return _mean_between(shares, places, level, 1 - level)
        case _ if side == "lower":
            return _mean_between(shares, places, 0.0, 1 - level)
        case _:
            return _mean_between(shares, places, level, 1.0)


def _inverse(shares: Floats, places: Floats, level: float) -> float:
    k = int(np.clip(np.searchsorted(shares, level, side="left"), 1, shares.size - 1))
    part = (level - shares[k - 1]) / max(shares[k] - shares[k - 1], 1e-300)
    return float(places[k - 1] + min(max(part, 0.0), 1.0) * (places[k] - places[k - 1]))


def _mean_between(shares: Floats, places: Floats, low: float, high: float) -> float:
    """Return the mean of what lies between two levels, evenly spread within each bin."""
    kept = np.clip(np.minimum(shares[1:], high) - np.maximum(shares[:-1], low), 0.0, None)
    if kept.sum() <= 0:
        return _inverse(shares, places, (low + high) / 2)
    gaps = np.maximum(shares[1:] - shares[:-1], 1e-300)
    start = np.clip((np.maximum(shares[:-1], low) - shares[:-1]) / gaps, 0.0, 1.0)
    stop = np.clip((np.minimum(shares[1:], high) - shares[:-1]) / gaps, 0.0, 1.0)
    middles = places[:-1] + (start + stop) / 2 * np.diff(places)
    return float(np.dot(kept, middles) / kept.sum())
