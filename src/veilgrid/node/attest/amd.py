"""Attestation reports of AMD SEV-SNP, Milan generation [attestation 2; AMD 2023]."""

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from veilgrid.node.attest.chain import fingerprint, parsed, problems_of
from veilgrid.node.attest.evidence import OK, Evidence, Forged, Found

if TYPE_CHECKING:
    from cryptography import x509

ROOTS: Final = frozenset({"69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd"})
"""SHA-256 of AMD's root certificate ARK-Milan."""
OUT_OF_DATE: Final = "OutOfDate"
STATUSES: Final = frozenset({OK, OUT_OF_DATE})
_LENGTH: Final = 1184
_SIGNED_LENGTH: Final = 0x2A0
_NUMBER_LENGTH: Final = 72
_VERSIONS: Final = (2, 3)
_ECDSA_P384_SHA384: Final = 1
_SIGNED_BY_VCEK: Final = 0
_DEBUG: Final = 1 << 19
_MIGRATION: Final = 1 << 18
_OID: Final = "1.3.6.1.4.1.3704.1"
_NAMES: Final = ("the chip", "AMD's intermediate", "AMD's root")


class Firmware(NamedTuple):
    """Versions of the platform's firmware, each 0 … 255."""

    bootloader: int
    tee: int
    snp: int
    microcode: int


def inspect(
    evidence: Evidence, now_s: float, minimum: Firmware, roots: frozenset[str] = ROOTS
) -> Found:
    """Return what a report says, if AMD's root vouches for it at that time.

    Parameters
    ----------
    evidence
        Of kind ``sev-snp``.
    now_s : seconds since 1970
        When the certificates have to be valid.
    minimum
        A platform with anything older has status ``OutOfDate``.
    roots
        Fingerprints; others than AMD's are for tests.

    Raises
    ------
    Forged
        With every reason.
    """
    report = evidence.statement
    _check_form(report)
    if len(evidence.certificates) != len(_NAMES):
        raise Forged("three certificates are needed: the chip's, AMD's intermediate and root")
    chain = [
        parsed(octets, name) for octets, name in zip(evidence.certificates, _NAMES, strict=True)
    ]
    problems = list(problems_of(chain, _NAMES, roots, now_s))
    if not _is_signed(report, chain[0]):
        problems.append("the report's signature does not hold under the chip's key")
    firmware = _firmware(report[0x180:0x188])
    problems += _chip_problems(chain[0], firmware, report[0x1A0:0x1E0])
    if problems:
        raise Forged(*problems)
    policy = struct.unpack_from("<Q", report, 0x08)[0]
    (level,) = struct.unpack_from("<I", report, 0x30)
    never = []
    if level != 0:
        never.append(f"the report was asked for at privilege level {level}, not 0")
    if policy & _MIGRATION:
        never.append("a migration agent is allowed, which is not supported")
    is_old = any(have < need for have, need in zip(firmware, minimum, strict=True))
    return Found(
        kind="sev-snp",
        measurement=report[0x90:0xC0],
        status=OUT_OF_DATE if is_old else OK,
        bound=report[0x50:0x90],
        is_debug=bool(policy & _DEBUG),
        certificates=frozenset(fingerprint(one) for one in chain),
        chips=frozenset({report[0x1A0:0x1E0].hex()}),
        registers={
            "measurement": report[0x90:0xC0].hex(),
            "host_data": report[0xC0:0xE0].hex(),
            "firmware": ".".join(map(str, firmware)),
        },
        problems=tuple(never),
    )


def _check_form(report: bytes) -> None:
    if len(report) != _LENGTH:
        raise Forged(f"the report has {len(report)} octets, not {_LENGTH}")
    version, algorithm = (struct.unpack_from("<I", report, at)[0] for at in (0x00, 0x34))
    (flags,) = struct.unpack_from("<I", report, 0x48)
    problems = []
    if version not in _VERSIONS:
        problems.append(f"the report is of version {version}, not 2 or 3")
    if algorithm != _ECDSA_P384_SHA384:
        problems.append(f"the report's signature is of kind {algorithm}, not ECDSA P-384")
    if flags >> 2 & 0x7 != _SIGNED_BY_VCEK:
        problems.append("the report was not signed by a chip's own key")
    if problems:
        raise Forged(*problems)


def _is_signed(report: bytes, chip: "x509.Certificate") -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    key = chip.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        return False
    at = _SIGNED_LENGTH
    r = int.from_bytes(report[at : at + _NUMBER_LENGTH], "little")
    s = int.from_bytes(report[at + _NUMBER_LENGTH : at + 2 * _NUMBER_LENGTH], "little")
    if any(report[at + 2 * _NUMBER_LENGTH :]):
        return False
    try:
        key.verify(encode_dss_signature(r, s), report[:at], ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return False
    return True


def _firmware(octets: bytes) -> Firmware:
    return Firmware(octets[0], octets[1], octets[6], octets[7])


def _chip_problems(chip: "x509.Certificate", firmware: Firmware, chip_id: bytes) -> Iterator[str]:
    """Yield where the chip's certificate was made for another chip or other firmware."""
    values = {
        one.oid.dotted_string: one.value.public_bytes()
        for one in chip.extensions
        if one.oid.dotted_string.startswith(_OID)
    }
    if not any(chip_id):
        yield "the report does not name its chip"
    elif values.get(f"{_OID}.4") != chip_id:
        yield "the chip's certificate names another chip than the report"
    product = values.get(f"{_OID}.2", b"")[2:]
    if not product.startswith(b"Milan"):
        yield "the chip is not of the Milan generation"
    numbers = {"1": firmware.bootloader, "2": firmware.tee, "3": firmware.snp}
    numbers["8"] = firmware.microcode
    for suffix, number in numbers.items():
        value = values.get(f"{_OID}.3.{suffix}", b"")
        if len(value) < 3 or value[0] != 0x02 or int.from_bytes(value[2:], "big") != number:
            yield "the chip's certificate was made for other firmware than the report names"
            return
