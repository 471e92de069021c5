"""Quotes of SGX and TDX, checked by dcap-qvl against Intel's root [attestation 2]."""

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from veilgrid.errors import SetupError
from veilgrid.node.attest.chain import fingerprint, moment, parsed_all, problems_of, window
from veilgrid.node.attest.evidence import OK, Evidence, Forged, Found, Kind

if TYPE_CHECKING:
    from cryptography import x509

ROOTS: Final = frozenset({"44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"})
"""SHA-256 of Intel's root certificate, Intel SGX Root CA."""
_CHAINS: Final = (
    ("", "the platform", 3),
    ("pck_crl_issuer_chain", "the platforms' issuer", 2),
    ("tcb_info_issuer_chain", "the TCB info's signer", 2),
    ("qe_identity_issuer_chain", "the quoting enclave's signer", 2),
)
_TEE: Final = {0x00: "sgx", 0x81: "tdx"}
_UP_TO_DATE: Final = "UpToDate"
_SGX_DEBUG: Final = 0x02
_TDX_DEBUG: Final = 0x01
_TDX_MEASURED: Final = (
    "mr_td",
    "mr_config_id",
    "mr_owner",
    "mr_owner_config",
    "rt_mr0",
    "rt_mr1",
    "rt_mr2",
    "rt_mr3",
)
STATUSES: Final = frozenset(
    {
        OK,
        "SWHardeningNeeded",
        "ConfigurationNeeded",
        "ConfigurationAndSWHardeningNeeded",
        "OutOfDate",
        "OutOfDateConfigurationNeeded",
    }
)
"""What a policy may accept; ``Revoked`` it may not."""


def inspect(evidence: Evidence, now_s: float) -> Found:
    """Return what a quote says, if Intel's root vouches for it at that time.

    Raises
    ------
    Forged
        With every reason.
    SetupError
        dcap-qvl is not installed.
    """
    try:
        import dcap_qvl
    except ImportError:
        raise SetupError("SGX and TDX evidence needs dcap-qvl: install veilgrid[attest]") from None

    if (
        len(evidence.statement) < 8
        or struct.unpack_from("<I", evidence.statement, 4)[0] not in _TEE
    ):
        raise Forged("the quote is malformed")
    if not evidence.collateral:
        raise Forged("the collateral is missing: without it nobody can tell revoked platforms")
    try:
        quote = dcap_qvl.parse_quote(evidence.statement)
        kind = _TEE[quote.header.tee_type]
        certificates = _embedded(quote)
    except (ValueError, KeyError):
        raise Forged("the quote is malformed") from None
    if kind != evidence.kind:
        raise Forged(f"the quote is of kind {kind}, not {evidence.kind}")
    try:
        collateral = dcap_qvl.QuoteCollateralV3.from_json(evidence.collateral)
        problems = list(_problems(json.loads(evidence.collateral), certificates, now_s))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise Forged("the collateral is malformed") from None
    try:
        report = dcap_qvl.verify(evidence.statement, collateral, int(now_s))
    except (ValueError, OverflowError) as error:
        raise Forged(*(problems or [_reason(error)])) from None
    if problems:
        raise Forged(*problems)
    status = OK if report.status == _UP_TO_DATE else str(report.status)
    found = _found(evidence.kind, quote.report, status, tuple(report.advisory_ids), certificates)
    return replace(found, chips=frozenset({bytes(report.ppid).hex()}))


def _found(
    kind: Kind,
    body: Any,
    status: str,
    advisories: tuple[str, ...],
    certificates: "list[x509.Certificate]",
) -> Found:
    problems = []
    if kind == "sgx":
        measurement = bytes(body.mr_enclave)
        is_debug = bool(body.attributes[0] & _SGX_DEBUG)
        registers = {"mr_enclave": body.mr_enclave.hex(), "mr_signer": body.mr_signer.hex()}
    else:
        parts = [bytes(getattr(body, name)) for name in _TDX_MEASURED]
        measurement = hashlib.sha384(b"".join(parts)).digest()
        is_debug = bool(body.td_attributes[0] & _TDX_DEBUG)
        registers = {
            name: part.hex() for name, part in zip(_TDX_MEASURED, parts, strict=True) if any(part)
        }
        if any(getattr(body, "mr_service_td", b"")):
            problems.append("a service domain is bound to the domain, which is not supported")
    return Found(
        kind=kind,
        measurement=measurement,
        status=status,
        bound=bytes(body.report_data),
        is_debug=is_debug,
        advisories=advisories,
        certificates=frozenset(fingerprint(one) for one in certificates),
        registers=registers,
        problems=tuple(problems),
    )


def _embedded(quote: Any) -> "list[x509.Certificate]":
    pem = quote.cert_chain_pem_bytes()
    if pem is None:
        raise Forged("the quote holds no certificate of its platform")
    return parsed_all(pem.replace(b"\x00", b""), "the platform")


def _problems(
    collateral: dict[str, Any], certificates: "list[x509.Certificate]", now_s: float
) -> Iterator[str]:
    """Yield what is out of date, and chains that do not end in Intel's root.

    dcap-qvl looks at the latter only as far as it needs them.
    """
    from cryptography import x509

    for key, name in (("tcb_info", "TCB info"), ("qe_identity", "quoting enclave's identity")):
        part = json.loads(collateral[key])
        start, end = moment(part["issueDate"]), moment(part["nextUpdate"])
        yield from window(f"the collateral's {name}", start, end, now_s)
    for key, name in (("root_ca_crl", "root"), ("pck_crl", "platforms")):
        revoked = x509.load_der_x509_crl(bytes.fromhex(collateral[key]))
        following = revoked.next_update_utc
        end = following.timestamp() if following else revoked.last_update_utc.timestamp()
        start = revoked.last_update_utc.timestamp()
        yield from window(f"the collateral's revocation list of the {name}", start, end, now_s)
    for key, name, length in _CHAINS:
        chain = parsed_all(collateral[key].encode(), name) if key else certificates
        if len(chain) != length:
            yield f"the chain of {name} has {len(chain)} certificates, not {length}"
            continue
        above = [f"authority {depth} above {name}" for depth in range(1, len(chain))]
        yield from problems_of(chain, [name, *above], ROOTS, now_s)


def _reason(error: Exception) -> str:
    """Return dcap-qvl's reason in one line; it names checks, never content of ours."""
    text = str(error).removeprefix("Verification failed: ")
    return f"the quote does not verify: {' '.join(text.split())[:160]}"
