"""Evidence as it travels, what it is bound to, and what is believed of it [attestation 1]."""

import hashlib
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

from veilgrid.errors import ConfigError, Finding, HandshakeFailed, invariant

Kind = Literal["nitro", "sev-snp", "sgx", "software", "tdx"]
KINDS: Final[tuple[Kind, ...]] = ("nitro", "sev-snp", "sgx", "software", "tdx")
HARDWARE_KINDS: Final = frozenset(KINDS) - {"software"}
BINDING_LENGTH: Final = 64
NONCE_LENGTH_MIN: Final = 16
EVIDENCE_LENGTH_MAX: Final = 1 << 20
_DOMAIN: Final = b"veilgrid attest 1\x00"

OK: Final = "ok"
"""The status of evidence whose platform lacks nothing that its maker knows of."""


class Evidence(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """What a process shows, and what is needed to check it offline.

    Attributes
    ----------
    statement
        The quote, report, document or software statement itself.
    certificates : DER
        Of SEV-SNP: the chip's, then AMD's intermediate and root. Others carry theirs inside.
    collateral : JSON
        Of SGX and TDX: revocation lists, platform and quoting-enclave states of Intel's service.
    """

    kind: Kind
    statement: bytes
    certificates: tuple[bytes, ...] = ()
    collateral: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What is believed of a process; fits :class:`veilgrid.mpc.policy.Claims`.

    Attributes
    ----------
    hardware
        Whether a chip vouches for it. False for software evidence, always.
    measurement
        Digest of the program that runs [attestation 3].
    status
        ``ok``, or what its maker says of the platform.
    advisories
        Security advisories that apply to the platform.
    """

    kind: str
    hardware: bool
    measurement: bytes
    status: str
    advisories: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        invariant(
            self.hardware == (self.kind in HARDWARE_KINDS), "software evidence is no hardware"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What genuine evidence says, before any policy looks at it.

    Attributes
    ----------
    bound
        The octets that the process chose: its binding, padded by its maker's format.
    certificates, chips, roots
        What may be revoked, hexadecimal: fingerprints, chips, development roots.
    issued_s : seconds since 1970
        When it was made, if it says so.
    registers
        What people may want to see of it.
    problems
        Why no policy accepts it though it is genuine.
    """

    kind: Kind
    measurement: bytes
    status: str
    bound: bytes
    is_debug: bool = False
    advisories: tuple[str, ...] = ()
    certificates: frozenset[str] = frozenset()
    chips: frozenset[str] = frozenset()
    roots: frozenset[str] = frozenset()
    issued_s: float | None = None
    registers: dict[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


class Forged(Exception):
    """Evidence is not genuine, or not at this time; each argument is a reason."""

    @property
    def problems(self) -> tuple[str, ...]:
        """The reasons."""
        return tuple(map(str, self.args))


class EvidenceRefused(HandshakeFailed):
    """A process could not show by attestation what it is."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        self.problems = problems
        super().__init__("evidence refused: " + "; ".join(problems))


def binding(public_key: bytes, nonce: bytes) -> bytes:
    """Return H(public key || nonce), 64 octets: what evidence has to contain.

    Parameters
    ----------
    public_key
        Of the process that is asked; only its holder can use what the evidence allows.
    nonce : 16 octets or more
        Drawn by who asks, so that old evidence does not fit.
    """
    invariant(len(nonce) >= NONCE_LENGTH_MIN, "a nonce has at least 16 octets")
    length = len(public_key).to_bytes(4, "big")
    return hashlib.sha512(_DOMAIN + length + public_key + nonce).digest()


def encode(evidence: Evidence) -> bytes:
    """Return evidence as JSON for a file."""
    return msgspec.json.format(msgspec.json.encode(evidence), indent=1) + b"\n"


def decode(octets: bytes, name: str) -> Evidence:
    """Read what :func:`encode` wrote.

    Raises
    ------
    ConfigError
        It is no evidence.
    """
    if len(octets) > EVIDENCE_LENGTH_MAX:
        raise ConfigError([Finding(name, f"has {len(octets)} octets, too many for evidence")])
    try:
        return msgspec.json.decode(octets, type=Evidence)
    except (msgspec.DecodeError, RecursionError) as error:
        advice = "`veilgrid key attest` writes such a file"
        raise ConfigError([Finding(name, f"is no evidence: {error}", advice)]) from None
