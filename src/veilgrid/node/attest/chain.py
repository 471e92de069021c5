"""Chains of certificates up to a pinned root, at a given time [attestation 2]."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from veilgrid.node.attest.evidence import Forged

if TYPE_CHECKING:
    from cryptography import x509


def parsed(octets: bytes, what: str) -> "x509.Certificate":
    """Return a certificate from DER.

    AMD's chip certificates have serial number 0, about which the library warns.

    Raises
    ------
    Forged
        It is none.
    """
    from cryptography import x509

    try:
        with _without_warnings():
            return _sound(x509.load_der_x509_certificate(octets))
    except _foreign():
        raise Forged(f"the certificate of {what} is malformed") from None


def parsed_all(octets: bytes, what: str) -> list["x509.Certificate"]:
    """Return certificates from PEM, at least one.

    Raises
    ------
    Forged
        One is malformed.
    """
    from cryptography import x509

    try:
        with _without_warnings():
            found = [_sound(one) for one in x509.load_pem_x509_certificates(octets)]
            if all(one.serial_number > 0 for one in found):
                return found
            raise ValueError("serial number")
    except _foreign():
        raise Forged(f"a certificate of {what} is malformed") from None


@contextmanager
def _without_warnings() -> Iterator[None]:
    from cryptography.utils import CryptographyDeprecationWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        yield


def _sound(certificate: "x509.Certificate") -> "x509.Certificate":
    """Parse now what the library parses when it is looked at."""
    certificate.extensions, certificate.public_key(), certificate.signature_hash_algorithm
    return certificate


def _foreign() -> tuple[type[Exception], ...]:
    """Return what the library raises for octets that are no sound certificate."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    return (
        ValueError,
        TypeError,
        InvalidSignature,
        UnsupportedAlgorithm,
        x509.DuplicateExtension,
        x509.InvalidVersion,
        x509.UnsupportedGeneralNameType,
    )


def fingerprint(certificate: "x509.Certificate") -> str:
    """Return the SHA-256 of a certificate, hexadecimal."""
    from cryptography.hazmat.primitives import hashes

    return certificate.fingerprint(hashes.SHA256()).hex()


def problems_of(
    chain: Sequence["x509.Certificate"],
    names: Sequence[str],
    roots: frozenset[str],
    now_s: float,
) -> Iterator[str]:
    """Yield what is wrong with a chain, leaf first.

    Parameters
    ----------
    chain
        Each signed by the next, the last by itself.
    names
        What each certificate is called in reasons.
    roots
        Fingerprints that the last one may have.
    now_s : seconds since 1970
        When all have to be valid.
    """
    for depth, (one, name) in enumerate(zip(chain, names, strict=True)):
        yield from _dates(one, name, now_s)
        issuer = chain[min(depth + 1, len(chain) - 1)]
        if not _is_issued_by(one, issuer):
            yield f"the certificate of {name} was not signed by the next one of the chain"
        if depth > 0:
            yield from _authority(one, name, depth)
    if fingerprint(chain[-1]) not in roots:
        yield f"the root {fingerprint(chain[-1])[:16]}... is not a pinned one"


def _is_issued_by(one: "x509.Certificate", issuer: "x509.Certificate") -> bool:
    try:
        one.verify_directly_issued_by(issuer)
    except _foreign():
        return False
    return True


def _dates(one: "x509.Certificate", name: str, now_s: float) -> Iterator[str]:
    if now_s < one.not_valid_before_utc.timestamp():
        yield f"the certificate of {name} is not valid before {one.not_valid_before_utc:%F %T} UTC"
    if now_s > one.not_valid_after_utc.timestamp():
        yield f"the certificate of {name} ended at {one.not_valid_after_utc:%F %T} UTC"


def _authority(one: "x509.Certificate", name: str, depth: int) -> Iterator[str]:
    """Yield why ``one``, with ``depth - 1`` authorities below it, may not sign what it signed."""
    from cryptography import x509

    try:
        basic = one.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = one.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        yield f"the certificate of {name} does not say that it is an authority"
        return
    if not basic.ca or not usage.key_cert_sign:
        yield f"the certificate of {name} is not one of an authority"
    if basic.path_length is not None and basic.path_length < depth - 1:
        yield f"the certificate of {name} allows a path of {basic.path_length} authorities only"


def moment(text: str) -> float:
    """Return seconds since 1970 of an ISO 8601 text."""
    found = datetime.fromisoformat(text)
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def window(what: str, start_s: float, end_s: float, now_s: float) -> Iterator[str]:
    """Yield why ``now_s`` is outside a time of validity."""
    if now_s < start_s:
        yield f"{what} is dated {_shown(start_s)}, which is after the given time"
    if now_s > end_s:
        yield f"{what} ended at {_shown(end_s)}"


def _shown(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%F %T} UTC"
