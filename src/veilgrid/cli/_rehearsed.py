"""Evidence for simulated days: genuine, and wrong in each way that a policy refuses [day 6]."""

from collections.abc import Callable, Mapping
from typing import Final

from veilgrid.node.attest.admission import PolicyAssessor, quote_by
from veilgrid.node.attest.policy import Policy, Program
from veilgrid.node.attest.software import SoftwareProvider
from veilgrid.roles.ledger_admission import Assessor, Quote
from veilgrid.secret import Secret, SeededRandomness

NOW_S: Final = 1_800_000_000.0
"""Seconds since 1970 throughout a simulated day: evidence does not grow old in it."""
_APART: Final = 1 << 48
"""Seeds of nonces are no seeds of masks: equal octets on the wire would look like a leak."""
_AGE_S: Final = 1000.0
_PROGRAM: Final = bytes(48)


def _now() -> float:
    return NOW_S


def rehearsed(
    kinds: Mapping[str, str], validators: tuple[str, ...], seed: int
) -> Callable[[str], tuple[Quote, Assessor | None]]:
    """Return what each process shows and, of validators, what judges it.

    Parameters
    ----------
    kinds
        By process: in which way its evidence is wrong, one of ``EVIDENCE`` of the faults file;
        who is not named shows genuine evidence.
    validators
        Who judges.
    seed
        Of the nonces.
    """
    genuine = SoftwareProvider(Secret(bytes(range(32))), _PROGRAM)
    policy = Policy(
        accept_software=True,
        software_roots=(genuine.root_key.hex(),),
        program=(Program(kind="software", measurement=_PROGRAM.hex()),),
    )
    makers: dict[str, Callable[[], Quote]] = {
        "forged": lambda: quote_by(SoftwareProvider(Secret(bytes(32)), _PROGRAM), _now),
        "expired": lambda: quote_by(genuine, lambda: NOW_S - _AGE_S),
        "replayed": lambda: _replaying(quote_by(genuine, _now)),
        "foreign": lambda: _foreign(quote_by(genuine, _now)),
        "another-program": lambda: quote_by(
            SoftwareProvider(Secret(bytes(range(32))), bytes([1]) * 48), _now
        ),
        "none": lambda: _nothing,
    }
    quotes = {name: makers[kind]() for name, kind in kinds.items()}

    def attest(name: str) -> tuple[Quote, Assessor | None]:
        quote = quotes.get(name, quote_by(genuine, _now))
        if name not in validators:
            return quote, None
        randomness = SeededRandomness(_APART + 1000 * seed + validators.index(name))
        return quote, PolicyAssessor(policy, randomness, _now)

    return attest


def _replaying(quote: Quote) -> Quote:
    """Show everybody what was once made for somebody else."""

    def again(public_key: bytes, _nonce: bytes) -> bytes:
        return quote(public_key, bytes(32))

    return again


def _foreign(quote: Quote) -> Quote:
    """Show the evidence of a process with another key."""

    def other(_public_key: bytes, nonce: bytes) -> bytes:
        return quote(bytes(32), nonce)

    return other


def _nothing(_public_key: bytes, _nonce: bytes) -> bytes:
    return b"\xff"
