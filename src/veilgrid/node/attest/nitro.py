"""Attestation documents of AWS Nitro enclaves [attestation 2]."""

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from veilgrid.errors import SetupError
from veilgrid.node.attest.chain import fingerprint, parsed, problems_of
from veilgrid.node.attest.evidence import OK, Evidence, Forged, Found

if TYPE_CHECKING:
    from cryptography import x509

ROOTS: Final = frozenset({"641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"})
"""SHA-256 of AWS's root certificate aws.nitro-enclaves."""
STATUSES: Final = frozenset({OK})
_SIGN1: Final = 18
_ES384: Final = {1: -35}
_SIGNATURE_LENGTH: Final = 96
_CHAIN_MAX: Final = 8
_REGISTERS_MAX: Final = 32
_FIELD_MAX: Final = {"public_key": 1024, "user_data": 512, "nonce": 512}


def inspect(evidence: Evidence, now_s: float, roots: frozenset[str] = ROOTS) -> Found:
    """Return what a document says, if AWS's root vouches for it at that time.

    Parameters
    ----------
    evidence
        Of kind ``nitro``.
    now_s : seconds since 1970
        When the certificates have to be valid.
    roots
        Fingerprints; others than AWS's are for tests.

    Raises
    ------
    Forged
        With every reason.
    SetupError
        cbor2 is not installed.
    """
    protected, payload, signature = _sign1(evidence.statement)
    document = _document(payload)
    ders = [document["certificate"], *reversed(document["cabundle"])]
    names = ["the enclave", *(f"authority {depth}" for depth in range(1, len(ders) - 1)), "AWS"]
    chain = [parsed(octets, name) for octets, name in zip(ders, names, strict=True)]
    problems = list(problems_of(chain, names, roots, now_s))
    if not _is_signed(protected, payload, signature, chain[0]):
        problems.append("the document's signature does not hold under the enclave's key")
    if problems:
        raise Forged(*problems)
    registers = document["pcrs"]
    return Found(
        kind="nitro",
        measurement=registers[0],
        status=OK,
        bound=document["user_data"] or b"",
        is_debug=not any(registers[0]),
        certificates=frozenset(fingerprint(one) for one in chain),
        chips=frozenset({document["module_id"].encode().hex()}),
        issued_s=document["timestamp"] / 1000,
        registers={f"pcr{n}": value.hex() for n, value in sorted(registers.items()) if any(value)},
    )


def _sign1(octets: bytes) -> tuple[bytes, bytes, bytes]:
    message = _loaded(octets, "document")
    if getattr(message, "tag", _SIGN1) == _SIGN1:
        message = getattr(message, "value", message)
    if not isinstance(message, list | tuple) or len(message) != 4:
        raise Forged("the document is no COSE_Sign1")
    protected, unprotected, payload, signature = message
    if unprotected != {}:
        raise Forged("the document has a header that nobody signed")
    if not all(isinstance(part, bytes) for part in (protected, payload, signature)):
        raise Forged("the document is no COSE_Sign1")
    if _loaded(protected, "document's header") != _ES384:
        raise Forged("the document's signature is not ES384")
    if len(signature) != _SIGNATURE_LENGTH:
        raise Forged(f"the document's signature has {len(signature)} octets")
    return protected, payload, signature


def _loaded(octets: bytes, what: str) -> Any:
    try:
        import cbor2
    except ImportError:
        raise SetupError("Nitro evidence needs cbor2: install veilgrid[attest]") from None
    stream = io.BytesIO(octets)
    try:
        found = cbor2.CBORDecoder(stream, read_size=1).decode()
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError):
        raise Forged(f"the {what} is malformed") from None
    if stream.read(1):
        raise Forged(f"the {what} has octets behind its end")
    return found


def _document(payload: bytes) -> dict[str, Any]:
    document = _loaded(payload, "document's payload")
    if not isinstance(document, dict):
        raise Forged("the document's payload is no map")
    for field in _FIELD_MAX:
        document.setdefault(field, None)
    problems = list(_broken(document))
    if problems:
        raise Forged(*problems)
    return document


def _broken(document: dict[str, Any]) -> Iterator[str]:
    """Yield which of the document's own rules do not hold [AWS Nitro 2024]."""
    module, moment = document.get("module_id"), document.get("timestamp")
    if not isinstance(module, str) or not module:
        yield "the document names no module"
    if document.get("digest") != "SHA384":
        yield "the document's digest is not SHA384"
    if isinstance(moment, bool) or not isinstance(moment, int) or not 0 < moment < 1 << 50:
        yield "the document has no sound time"
    registers = document.get("pcrs")
    if (
        not isinstance(registers, dict)
        or not 0 < len(registers) <= _REGISTERS_MAX
        or 0 not in registers
        or not all(
            isinstance(number, int)
            and 0 <= number < _REGISTERS_MAX
            and isinstance(value, bytes)
            and len(value) == 48
            for number, value in registers.items()
        )
    ):
        yield "the document has no sound registers"
    bundle = document.get("cabundle")
    if (
        not isinstance(bundle, list | tuple)
        or not 0 < len(bundle) < _CHAIN_MAX
        or not all(isinstance(one, bytes) for one in (document.get("certificate"), *bundle))
    ):
        yield "the document has no sound chain of certificates"
    for field, length in _FIELD_MAX.items():
        value = document[field]
        if value is not None and not (isinstance(value, bytes) and len(value) <= length):
            yield f"the document's {field} is malformed"


def _is_signed(
    protected: bytes, payload: bytes, signature: bytes, enclave: "x509.Certificate"
) -> bool:
    import cbor2
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    key = enclave.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        return False
    half = _SIGNATURE_LENGTH // 2
    r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
    signed = cbor2.dumps(["Signature1", protected, b"", payload])
    try:
        key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return False
    return True
