"""Which degree goes with which function, said before any input is taken [mpc 7.6]."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from veilgrid.errors import Finding, InputError
from veilgrid.mpc.shamir import check_degree

LINEAR: Final = frozenset({"sum", "mean", "weighted-sum"})
QUADRATIC: Final = frozenset({"variance"})
PARTIES_MAX: Final = 7
COMPARING: Final = frozenset({"median", "quantile", "sort", "clip"})


@dataclass(frozen=True, slots=True)
class Policy:
    """What the committee agreed on.

    Attributes
    ----------
    batch_min
        Inputs needed before anything opens.
    is_dealer_allowed
        Whether triples of a dealer are used where the degree asks for them.
    is_software_dealer_allowed
        Whether a dealer without hardware attestation is accepted; never in production.
    dealer_measurements
        Digests of the programs that a dealer may run; empty allows none.
    dealer_statuses
        What the verifier may say of the hardware; anything else (revoked, out of date) is refused.
    """

    batch_min: int = 2
    is_dealer_allowed: bool = False
    is_software_dealer_allowed: bool = False
    dealer_measurements: frozenset[bytes] = frozenset()
    dealer_statuses: frozenset[str] = frozenset({"ok"})


class Claims(Protocol):
    """What a verifier of attestation found; any value with these attributes will do.

    Attributes
    ----------
    kind
        Of the evidence, for example ``tdx`` or ``software``.
    hardware
        Whether a chip vouches for it.
    measurement
        Digest of the program that runs.
    status
        ``ok``, or what is wrong.
    """

    @property
    def kind(self) -> str: ...
    @property
    def hardware(self) -> bool: ...
    @property
    def measurement(self) -> bytes: ...
    @property
    def status(self) -> str: ...


def linear_degree(n: int) -> int:
    """Return the default for linear functions: opening takes two thirds of the parties."""
    return max(-(-2 * n // 3) - 1, 1)


def product_degree(n: int) -> int:
    """Return the largest degree at which shares can be multiplied without a dealer."""
    return (n - 1) // 2


def default_degree(n: int, function: str, checked_inputs: bool = True) -> int:
    """Return the degree that a function gets if none is asked for."""
    is_linear = function in LINEAR and not checked_inputs
    return linear_degree(n) if is_linear else product_degree(n)


def check(
    n: int,
    degree: int,
    function: str,
    *,
    checked_inputs: bool = True,
    policy: Policy | None = None,
    where: Callable[[str], str] = str,
) -> None:
    """Refuse a function that cannot run under the degree, and say what would.

    Parameters
    ----------
    n, degree
        Of the committee.
    function
        Name of the function.
    checked_inputs
        Whether inputs are validated on shares, which takes multiplications.
    policy
        What the committee agreed on.
    where
        How findings name a parameter.

    Raises
    ------
    InputError
        All findings at once.
    """
    check_degree(n, degree)
    agreed = policy or Policy()
    findings = []
    multiplies = function in QUADRATIC or checked_inputs
    largest = product_degree(n)
    if function in COMPARING and degree > largest:
        findings.append(
            Finding(
                where("degree"),
                f"{function} compares numbers, which needs 2 x degree + 1 <= parties, also with "
                f"dealt triples; found degree {degree} with {n} parties",
                _instead(degree, largest),
            )
        )
    elif multiplies and degree > largest and not agreed.is_dealer_allowed:
        what = "validated inputs" if function in LINEAR else function
        findings.append(
            Finding(
                where("degree"),
                f"{what} need multiplications, that is 2 x degree + 1 <= parties, or dealt "
                f"triples; found degree {degree} with {n} parties",
                f"{_instead(degree, largest)}, or a dealer",
            )
        )
    elif multiplies and degree > n - 2:
        findings.append(
            Finding(
                where("degree"),
                f"dealt triples are checked only if degree <= parties - 2; found {degree}",
                f"use degree {n - 2}",
            )
        )
    elif degree > n - 2:
        findings.append(
            Finding(
                where("degree"),
                f"a wrong share of the result is noticed only if degree <= parties - 2; found "
                f"{degree} with {n} parties",
                f"use degree {n - 2} or less",
            )
        )
    if findings:
        raise InputError(findings)


def _instead(degree: int, largest: int) -> str:
    """Say what would work: fewer who may collude, or more parties, of which there are up to 7."""
    needed = 2 * degree + 1
    more = f", or {needed} parties or more" if needed <= PARTIES_MAX else ""
    return f"use degree {largest} or less{more}"
