"""Plan the noise of a release, and keep the budget of a day [privacy 1, 4].

A plan says how large the noise must be, who adds it, and how large the error will be, before
anything is computed. A budget is the rule book of the ledger on disk (``node/budget.py``).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import msgspec

from veilgrid.errors import Finding, InputError, invariant
from veilgrid.mpc.circuit import COMPARABLE_BITS
from veilgrid.mpc.noise import SIGMA_MAX, gaussian_slack
from veilgrid.risk.accountant import Charge, Loss, check_guarantee, sigma_for, spent

MODES: Final = ("committee", "parties", "devices", "local")
EPSILON_DAY: Final = 1.0
DEVICES_MIN: Final = 100
ERROR_WARNED: Final = 0.05
SLOTS_A_DAY: Final = 96

_ADDED: Final = frozenset({"sum", "mean", "weighted-mean"})
_COUNTED: Final = frozenset({"median", "quantile", "trimmed-mean", "cvar"})
_SIGMA_AIM: Final = 100.0
_SIGMA_AIM_BINS: Final = 40.0  # a histogram draws one number a bin
_TAIL: Final = 2.0**-60


def delta_default(devices: int) -> float:
    """Return the usual delta: one in a million, less for more than 100,000 devices."""
    return min(1e-6, 1 / (10 * max(devices, 1)))


def is_counted(function: str) -> bool:
    """Return whether a function is answered from a noisy histogram, and not from a noisy sum.

    Raises
    ------
    InputError
        The function allows neither.
    """
    if function in _ADDED:
        return False
    if function in _COUNTED:
        return True
    raise InputError(
        [
            Finding(
                "--epsilon",
                f"{function} with differential privacy is not offered: one device can change it "
                "by the square of its range, which no useful noise covers",
                "ask for quantile with --level 0.16 and 0.84; their distance tells the spread",
            )
        ]
    )


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What is promised to each device.

    Attributes
    ----------
    epsilon, delta
        All ``releases`` together tell two readings of one device apart no better than this.
    releases
        How many figures a day share the promise.
    """

    epsilon: float
    delta: float
    releases: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be kept."""
        check_guarantee(self.epsilon, self.delta)
        if not 1 <= self.releases <= 100_000:
            problem = f"found {self.releases}, expected 1..100000"
            raise InputError([Finding("--releases", problem)])


@dataclass(frozen=True, slots=True)
class Who:
    """Who takes part.

    Attributes
    ----------
    devices
        Devices that are asked.
    parties, degree
        Of the committee.
    honest_share : 0..1
        Least share of the devices that add the noise they should; used by ``devices`` only.
    """

    devices: int
    parties: int = 3
    degree: int = 1
    honest_share: float = 2 / 3


@dataclass(frozen=True, slots=True)
class Plan:
    """How a figure is made private.

    Attributes
    ----------
    mode
        Who adds noise, one of :data:`MODES`.
    guarantee
    charge
        What one release costs, in coarse steps.
    factor, shift
        The figure in coarse steps is ``figure * factor`` divided by ``2**shift``, rounded down.
    share_ratio : coarse steps squared
        Variance of the noise that each party or device adds, as numerator and denominator; 0 if
        the committee draws it jointly.
    share_bound : coarse steps
        No valid share of noise is larger.
    noise_sd : steps
        Standard deviation of all noise in the figure, in the steps it had before.
    """

    mode: str
    guarantee: Guarantee
    charge: Charge
    factor: int
    shift: int
    share_ratio: tuple[int, int]
    share_bound: int
    noise_sd: float

    @property
    def share_variance(self) -> Fraction:
        """Return the variance of one share of noise."""
        return Fraction(*self.share_ratio)

    @property
    def quantum(self) -> float:
        """Return how many steps one coarse step is."""
        return float(2.0**self.shift / self.factor)

    def steps(self, opened: int, roundings: int = 1) -> float:
        """Return an opened number in steps; half a coarse step is added for each rounding down."""
        return (opened + (0.5 * roundings if self.shift else 0.0)) * self.quantum


def plan_noise(
    mode: str,
    guarantee: Guarantee,
    who: Who,
    sensitivity: int,
    *,
    numbers: int = 1,
    bound: int = 0,
    squares: int | None = None,
) -> Plan:
    """Return how large the noise must be, and which steps carry it.

    Parameters
    ----------
    mode
        One of :data:`MODES`.
    guarantee
        What is promised.
    who
        Who takes part.
    sensitivity : > 0, steps
        Largest change of each number by one device, from its proved bounds.
    numbers
        How many numbers of one release a device changes: 1 for a sum, 2 for a histogram.
    bound : steps
        No valid figure is larger in magnitude.
    squares
        Sum of the squares of all weights; by default every device has weight 1. Used by ``local``,
        where each device's noise is weighed with its reading.

    Raises
    ------
    InputError
        The mode is unknown, or the promise asks for more noise than can be drawn.
    """
    if mode not in MODES:
        raise InputError([Finding("--noise", f"found {mode}, expected {', '.join(MODES)}")])
    invariant(sensitivity > 0 and numbers > 0, "somebody can change the figure")
    if numbers > 1 and mode in ("devices", "local"):
        advice = "use --noise committee or parties"
        problem = f"a histogram needs noise in every bin, too much from {mode}"
        raise InputError([Finding("--noise", problem, advice)])
    kind = "gaussian" if mode in ("committee", "local") else "skellam"
    count = numbers * guarantee.releases
    rough = sigma_for(kind, guarantee.epsilon, guarantee.delta / 2, 1, count)
    if rough > SIGMA_MAX:
        problem = f"epsilon {guarantee.epsilon:g} for {guarantee.releases} releases asks for noise"
        problem += f" of {rough:.0f} times the largest change by one device"
        raise InputError([Finding("--epsilon", problem, "raise epsilon or release less often")])
    coarse = max(int((_SIGMA_AIM if numbers == 1 else _SIGMA_AIM_BINS) / rough), 1)
    factor, shift = _coarse(sensitivity, coarse, bound)
    reach = -(-factor * sensitivity // 2**shift)
    slack = _slack(kind, mode, guarantee.epsilon, who)
    if 2 * count * slack > guarantee.delta:
        problem = f"found {guarantee.delta:g}, below what {count} drawn numbers are exact to"
        advice = f"use {4 * count * slack:.1g} or more, or a smaller epsilon"
        raise InputError([Finding("--delta", problem, advice)])
    sigma = sigma_for(kind, guarantee.epsilon, guarantee.delta, reach, count, slack)
    charge = Charge(kind, sigma, reach, numbers, slack * numbers)
    variance, share_bound, total = _shares(mode, sigma, who, squares or who.devices)
    quantum = 2.0**shift / factor
    return Plan(
        mode,
        guarantee,
        charge,
        factor,
        shift,
        variance.as_integer_ratio(),
        share_bound,
        math.sqrt(total) * quantum,
    )


def _coarse(sensitivity: int, coarse: int, bound: int) -> tuple[int, int]:
    """Return factor and shift that turn ``sensitivity`` into at most about ``coarse`` steps."""
    if sensitivity <= coarse:
        return 1, 0
    room = COMPARABLE_BITS - 1 - max(bound, sensitivity).bit_length()
    if room < 0:
        problem = f"figures of {max(bound, sensitivity).bit_length()} bits cannot be rounded"
        raise InputError([Finding("--epsilon", problem, "use larger units")])
    fine = min(room, 12)
    shift = max(math.ceil(math.log2(sensitivity * 2**fine / coarse)) - 1, 1)
    factor = coarse * 2**shift // sensitivity
    return (factor, shift) if factor >= 1 else (1, math.ceil(math.log2(sensitivity / coarse)))


def _slack(kind: str, mode: str, epsilon: float, who: Who) -> float:
    """Return what drawing adds to delta: distance of the drawn from the exact distribution."""
    sources = {"committee": 1, "local": 1, "parties": who.parties, "devices": who.devices}[mode]
    distance = gaussian_slack(SIGMA_MAX) if mode == "committee" else 4 * _TAIL * sources
    invariant(kind in ("gaussian", "skellam"), "a known kind of noise")
    return (1 + math.exp(epsilon)) * distance


def _shares(mode: str, sigma: float, who: Who, squares: int) -> tuple[Fraction, int, float]:
    """Return variance and bound of one share of noise, and the variance of all together."""
    needed = Fraction(math.ceil(sigma**2 * 1024), 1024)
    if mode == "committee":
        return Fraction(0), 0, sigma**2
    if mode == "local":
        return needed, tail_bound(float(needed)), float(needed) * squares
    if mode == "parties":
        honest, sources = who.parties - who.degree, who.parties
    else:
        honest, sources = max(math.floor(who.honest_share * who.devices), 1), who.devices
    share = needed / honest
    return share, tail_bound(float(share)), float(share * sources)


def tail_bound(variance: float) -> int:
    """Return a size that noise exceeds with probability below ``2**-60`` [privacy 2.3].

    Bernstein's inequality; it holds for Skellam and for the discrete Gaussian.
    """
    weight = math.log(2 / _TAIL)
    return math.ceil(weight / 3 + math.sqrt(weight**2 / 9 + 2 * weight * variance))


def predicted_error(noise_sd: float, ranges: Sequence[float]) -> float:
    """Return noise relative to a fleet whose mean lies in the middle of its bounds.

    Parameters
    ----------
    noise_sd : unit of the sum
        Of the sum.
    ranges : (device,), unit of the sum
        Weighted distance of each device's bounds.
    """
    return noise_sd / (sum(ranges) / 2)


def warnings_of(plan: Plan, who: Who, error: float | None) -> list[str]:
    """Return what a person should know before the release."""
    told = []
    if who.devices < DEVICES_MIN:
        told.append(f"only {who.devices} devices; a public feed needs {DEVICES_MIN} or more")
    if error is not None and error > ERROR_WARNED:
        told.append(
            f"the predicted error of {error:.1%} is above {ERROR_WARNED:.0%}; more devices, a "
            "larger epsilon or tighter bounds would help"
        )
    if plan.guarantee.delta > 1 / who.devices:
        told.append(f"delta {plan.guarantee.delta:g} may expose one of {who.devices} devices")
    return told


# -- budget --------------------------------------------------------------------------------------


class Terms(msgspec.Struct, frozen=True, tag=True):
    """What a ledger allows a day; written once."""

    epsilon: float
    delta: float
    salt: bytes


class Reserved(msgspec.Struct, frozen=True, tag=True):
    """A release that may have been computed: it counts, whatever came of it."""

    number: int
    day: str
    key: bytes
    charges: tuple[Charge, ...]


class Released(msgspec.Struct, frozen=True, tag=True):
    """What a release gave; the same question gets the same answer."""

    number: int
    answer: bytes


Record = Terms | Reserved | Released


class Budget:
    """The state of a ledger: what was reserved, what was answered.

    Parameters
    ----------
    terms
        What is allowed a day.
    """

    def __init__(self, terms: Terms) -> None:
        check_guarantee(terms.epsilon, terms.delta)
        self.terms = terms
        self._reserved: list[Reserved] = []
        self._answers: dict[int, bytes] = {}
        self._keys: dict[bytes, int] = {}

    def apply(self, record: Record) -> None:
        """Take in a record that is durable."""
        if isinstance(record, Reserved):
            invariant(record.number == len(self._reserved), "reservations are numbered in order")
            self._reserved.append(record)
        elif isinstance(record, Released):
            invariant(record.number < len(self._reserved), "only what was reserved is released")
            self._answers[record.number] = record.answer
            self._keys[self._reserved[record.number].key] = record.number

    def answer(self, key: bytes) -> bytes | None:
        """Return what this question was answered before; None if it never was."""
        number = self._keys.get(key)
        return None if number is None else self._answers[number]

    def attempts(self, key: bytes) -> int:
        """Return how often this question was reserved, answered or not."""
        return sum(one.key == key for one in self._reserved)

    def loss(self, day: str) -> Loss:
        """Return the privacy loss of all reservations of a day."""
        return spent(charge for one in self._reserved if one.day == day for charge in one.charges)

    def course(self, day: str, points: int = 12) -> list[tuple[int, float]]:
        """Return releases of a day and the epsilon they have spent together, at some of them."""
        charges = [one.charges for one in self._reserved if one.day == day]
        step = -(-len(charges) // points) or 1
        counts = range(len(charges), 0, -step)
        losses = {count: spent(c for one in charges[:count] for c in one) for count in counts}
        return [(count, losses[count].epsilon(self.terms.delta)) for count in reversed(counts)]

    def count(self, day: str) -> int:
        """Return how many releases of a day count."""
        return sum(one.day == day for one in self._reserved)

    def reserve(self, day: str, key: bytes, charges: Sequence[Charge]) -> Reserved:
        """Return the reservation to be made durable before anything is computed.

        A question that was reserved and not answered (a crash) is charged once more, because
        somebody may have seen its answer.

        Raises
        ------
        InputError
            The day's budget does not allow it.
        """
        held = [charge for one in self._reserved if one.day == day for charge in one.charges]
        delta = spent([*held, *charges]).delta(self.terms.epsilon)
        if delta > self.terms.delta:
            now = spent(held).epsilon(self.terms.delta) if held else 0.0
            problem = (
                f"the budget of {day} does not allow this release: {self.count(day)} releases "
                f"have spent epsilon {now:.3g} of {self.terms.epsilon:g} at delta "
                f"{self.terms.delta:g}"
            )
            advice = "use a smaller epsilon or wait for the next day's readings"
            raise InputError([Finding("--budget", problem, advice)])
        return Reserved(len(self._reserved), day, key, tuple(charges))
