"""Chips and enclaves that never were: own roots, own reports, to break one rule at a time."""

import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from veilgrid.node.attest.chain import fingerprint
from veilgrid.node.attest.evidence import Evidence

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
NOW_S = NOW.timestamp()
BOUND = bytes(range(64))
OID = "1.3.6.1.4.1.3704.1"
CHIP = bytes(range(1, 65))


@cache
def key(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def certificate(
    subject: str,
    issuer: str,
    *,
    is_authority: bool = True,
    path_length: int | None = None,
    signs: bool = True,
    signer: str | None = None,
    extensions: tuple[tuple[str, bytes], ...] = (),
    plain: bool = False,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key(subject).public_key())
        .serial_number(7)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=1))
    )
    if not plain:
        basic = x509.BasicConstraints(ca=is_authority, path_length=path_length)
        usage = x509.KeyUsage(
            digital_signature=not signs,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=signs,
            crl_sign=False,
            encipher_only=False,
            decipher_only=False,
        )
        builder = builder.add_extension(basic, True).add_extension(usage, True)
    for oid, value in extensions:
        made = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
        builder = builder.add_extension(made, False)
    return builder.sign(key(signer or issuer), hashes.SHA384())


def der(one: x509.Certificate) -> bytes:
    return one.public_bytes(serialization.Encoding.DER)


def raw(signature: bytes, length: int, order: str) -> bytes:
    r, s = decode_dss_signature(signature)
    return b"".join(number.to_bytes(length, order) for number in (r, s))  # type: ignore[arg-type]


# -- SEV-SNP --------------------------------------------------------------------------------------


def number(value: int) -> bytes:
    return b"\x02\x01" + bytes([value])


def chip(**changes: bytes) -> x509.Certificate:
    values = {
        "2": b"\x16\x08Milan-B0",
        "3.1": number(3),
        "3.2": number(0),
        "3.3": number(8),
        "3.8": number(115),
        "4": CHIP,
        **{suffix.removeprefix("x").replace("_", "."): v for suffix, v in changes.items()},
    }
    listed = tuple((f"{OID}.{suffix}", value) for suffix, value in values.items() if value)
    return certificate("chip", "ask", plain=True, extensions=listed)


@dataclass(frozen=True)
class Platform:
    """An SEV-SNP platform whose report and certificates can be changed before signing."""

    chip: x509.Certificate = field(default_factory=chip)
    ask: x509.Certificate = field(default_factory=lambda: certificate("ask", "ark", path_length=0))
    ark: x509.Certificate = field(default_factory=lambda: certificate("ark", "ark"))

    @property
    def roots(self) -> frozenset[str]:
        return frozenset({fingerprint(self.ark)})

    def report(self, **changes: tuple[int, bytes]) -> bytes:
        octets = bytearray(1184)
        fields = {
            "version": (0x00, struct.pack("<I", 2)),
            "policy": (0x08, struct.pack("<Q", 0x30000)),
            "algorithm": (0x34, struct.pack("<I", 1)),
            "report_data": (0x50, BOUND),
            "measurement": (0x90, bytes(range(48))),
            "firmware": (0x180, bytes([3, 0, 0, 0, 0, 0, 8, 115])),
            "chip": (0x1A0, CHIP),
            **changes,
        }
        for at, value in fields.values():
            octets[at : at + len(value)] = value
        signature = key("chip").sign(bytes(octets[:0x2A0]), ec.ECDSA(hashes.SHA384()))
        octets[0x2A0 : 0x2A0 + 144] = raw(signature, 72, "little")
        return bytes(octets)

    def evidence(self, **changes: tuple[int, bytes]) -> Evidence:
        certificates = (der(self.chip), der(self.ask), der(self.ark))
        return Evidence(kind="sev-snp", statement=self.report(**changes), certificates=certificates)


# -- Nitro ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Enclave:
    """A Nitro enclave whose document and chain can be changed before signing."""

    leaf: x509.Certificate = field(
        default_factory=lambda: certificate("leaf", "host", is_authority=False, signs=False)
    )
    host: x509.Certificate = field(
        default_factory=lambda: certificate("host", "aws", path_length=0)
    )
    aws: x509.Certificate = field(default_factory=lambda: certificate("aws", "aws"))
    header: dict[int, int] = field(default_factory=lambda: {1: -35})
    unsigned: Any = field(default_factory=dict)
    signer: str = "leaf"

    @property
    def roots(self) -> frozenset[str]:
        return frozenset({fingerprint(self.aws)})

    def document(self, **changes: Any) -> dict[str, Any]:
        made = {
            "module_id": "i-1-enc1",
            "digest": "SHA384",
            "timestamp": int(NOW_S * 1000),
            "pcrs": {0: bytes(range(48)), 1: bytes(48)},
            "certificate": der(self.leaf),
            "cabundle": [der(self.aws), der(self.host)],
            "public_key": None,
            "user_data": BOUND,
            "nonce": None,
            **changes,
        }
        return {field: value for field, value in made.items() if value is not ...}

    def evidence(self, **changes: Any) -> Evidence:
        protected = cbor2.dumps(self.header)
        payload = cbor2.dumps(self.document(**changes))
        signed = cbor2.dumps(["Signature1", protected, b"", payload])
        signature = key(self.signer).sign(signed, ec.ECDSA(hashes.SHA384()))
        message = [protected, self.unsigned, payload, raw(signature, 48, "big")]
        return Evidence(kind="nitro", statement=cbor2.dumps(message))
