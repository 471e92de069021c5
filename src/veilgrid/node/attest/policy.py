"""By what evidence is judged: a TOML file, strict where it says nothing [attestation 4]."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from veilgrid.config import load
from veilgrid.errors import ConfigError, Finding, SetupError
from veilgrid.node.attest import amd, intel, nitro
from veilgrid.node.attest.evidence import OK, Kind

FORMAT: Final = 1
AGE_MAX_S: Final = 300.0
CLOCK_ERROR_S: Final = 60.0
POLICY_HEAD: Final = (
    "# By what the evidence of other processes is judged. docs/protocol/attestation.md 4\n"
    "format = 1\n\n"
    "# Software evidence is no hardware and proves nothing about a machine.\n"
)
_MEASUREMENT_LENGTH: Final = {"sgx": 32, "tdx": 48, "sev-snp": 48, "nitro": 48, "software": 48}
_STATUSES: Final = {
    "sgx": intel.STATUSES,
    "tdx": intel.STATUSES,
    "sev-snp": amd.STATUSES,
    "nitro": nitro.STATUSES,
    "software": frozenset({OK}),
}
_FINGERPRINT_LENGTH: Final = 32
_ADVISORY: Final = re.compile(r"INTEL-SA-\d{5}")
_HEX: Final = re.compile(r"(?:[0-9a-f]{2})+")


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """One program that may run.

    Attributes
    ----------
    measurement
        Hexadecimal; which register it is of each kind is in [attestation 3].
    statuses
        What the maker may say of the platform.
    """

    kind: Kind
    measurement: str
    name: str = ""
    statuses: tuple[str, ...] = (OK,)


class Revoked(msgspec.Struct, frozen=True, kw_only=True):
    """What is accepted no more, whatever else the policy says; hexadecimal."""

    measurements: tuple[str, ...] = ()
    certificates: tuple[str, ...] = ()
    chips: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    advisories: tuple[str, ...] = ()


class Minimum(msgspec.Struct, frozen=True, kw_only=True):
    """Oldest firmware of SEV-SNP that is not out of date, each 0 … 255."""

    bootloader: int = 0
    tee: int = 0
    snp: int = 0
    microcode: int = 0

    @property
    def firmware(self) -> amd.Firmware:
        """The same as a tuple."""
        return amd.Firmware(self.bootloader, self.tee, self.snp, self.microcode)


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What evidence has to show. The defaults are for production and accept nobody."""

    format: int = FORMAT
    accept_software: bool = False
    software_roots: tuple[str, ...] = ()
    accept_debug: bool = False
    age_max_s: float = AGE_MAX_S
    clock_error_s: float = CLOCK_ERROR_S
    program: tuple[Program, ...] = ()
    revoked: Revoked = Revoked()
    minimum: Minimum = Minimum()

    @property
    def roots(self) -> frozenset[bytes]:
        """Development roots."""
        return frozenset(bytes.fromhex(root) for root in self.software_roots)


def read_policy(path: Path) -> Policy:
    """Read a policy file.

    Raises
    ------
    ConfigError
        Every broken rule at once.
    SetupError
        The file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SetupError(f"policy {path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError([Finding(str(path), "is no UTF-8 text")]) from None
    return parse_policy(text, str(path))


def parse_policy(text: str, name: str) -> Policy:
    """Read a policy from TOML text; see :func:`read_policy`."""
    policy = load(text, Policy, name)
    findings = list(_broken(policy, name))
    if "format" not in text:
        findings.append(Finding(f"{name}, key format", "is missing", f"this is {FORMAT}"))
    if findings:
        raise ConfigError(findings)
    return policy


def development_policy(root_key: bytes, measurement: bytes, name: str) -> str:
    """Return the text of a policy that accepts one development root and one program."""
    return POLICY_HEAD + (
        "# It is accepted here for development; a production policy says false.\n"
        "accept_software = true\n"
        f'software_roots = ["{root_key.hex()}"]\n\n'
        "[[program]]\n"
        f'name = "{name}"\n'
        'kind = "software"\n'
        f'measurement = "{measurement.hex()}"\n'
    )


def _broken(policy: Policy, name: str) -> Iterator[Finding]:
    if policy.format != FORMAT:
        problem = f"is {policy.format}; this version of veilgrid reads {FORMAT}"
        yield Finding(f"{name}, key format", problem)
    for key in ("age_max_s", "clock_error_s"):
        value = getattr(policy, key)
        if not 0 <= value < float("inf"):
            yield Finding(f"{name}, key {key}", f"is {value}, must be seconds, 0 or more")
    if policy.software_roots and not policy.accept_software:
        problem = "lists roots, but accept_software is false"
        yield Finding(f"{name}, key software_roots", problem, "remove them")
    for number, root in enumerate(policy.software_roots, 1):
        yield from _hex(f"{name}, key software_roots, entry {number}", root, 32)
    for number, program in enumerate(policy.program, 1):
        yield from _program(f"{name}, key program, entry {number}", program, policy)
    yield from _revoked(f"{name}, key revoked", policy.revoked)
    for key, value in zip(amd.Firmware._fields, policy.minimum.firmware, strict=True):
        if not 0 <= value <= 255:
            yield Finding(f"{name}, key minimum, key {key}", f"is {value}, must be in 0 … 255")


def _program(here: str, program: Program, policy: Policy) -> Iterator[Finding]:
    length = _MEASUREMENT_LENGTH[program.kind]
    yield from _hex(f"{here}, key measurement", program.measurement, length)
    if program.kind == "software" and not policy.accept_software:
        advice = "accept_software = true is for development only"
        yield Finding(f"{here}, key kind", "is software, which is not accepted", advice)
    known = _STATUSES[program.kind]
    for status in program.statuses:
        if status not in known:
            advice = f"known: {', '.join(sorted(known))}"
            yield Finding(f"{here}, key statuses", f"{status[:40]!r} cannot be accepted", advice)


def _revoked(here: str, revoked: Revoked) -> Iterator[Finding]:
    for key, length in (
        ("measurements", None),
        ("certificates", _FINGERPRINT_LENGTH),
        ("chips", None),
        ("roots", _FINGERPRINT_LENGTH),
    ):
        for number, text in enumerate(getattr(revoked, key), 1):
            yield from _hex(f"{here}, key {key}, entry {number}", text, length)
    for number, text in enumerate(revoked.advisories, 1):
        if not _ADVISORY.fullmatch(text):
            where = f"{here}, key advisories, entry {number}"
            yield Finding(where, f"is {text[:40]!r}", "for example INTEL-SA-00615")


def _hex(where: str, text: str, length: int | None) -> Iterator[Finding]:
    if not _HEX.fullmatch(text):
        yield Finding(where, "is not hexadecimal in lower case")
    elif length is not None and len(text) != 2 * length:
        yield Finding(where, f"has {len(text)} digits, {2 * length} are needed")
