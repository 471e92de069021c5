"""Published evidence of real machines, read where it lies: the repository ships none of it."""

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from veilgrid.node.attest.chain import moment
from veilgrid.node.attest.evidence import Evidence
from veilgrid.node.attest.policy import Policy, Program

FOLDER = Path(__file__).parents[4] / "shared" / "evidence"


@dataclass(frozen=True)
class Sample:
    """Evidence, a time at which it is valid, what it is bound to, and a policy that accepts it."""

    evidence: Evidence
    now_s: float
    bound: bytes
    policy: Policy


def _read(name: str) -> bytes:
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"published evidence {name} is not there; it lies beside the checkout only")
    return path.read_bytes()


def _der(name: str) -> bytes:
    text = _read(name).decode().split("-----")[2]
    return base64.b64decode("".join(text.split()))


def policy(kind: str, measurement: str, *statuses: str, **more: object) -> Policy:
    program = Program(kind=kind, measurement=measurement, statuses=statuses or ("ok",))  # type: ignore[arg-type]
    return Policy(program=(program,), **more)  # type: ignore[arg-type]


def sgx() -> Sample:
    collateral = _read("sgx-tdx/sgx_quote_collateral.json").decode()
    issued = moment(json.loads(json.loads(collateral)["tcb_info"])["issueDate"])
    evidence = Evidence(kind="sgx", statement=_read("sgx-tdx/sgx_quote"), collateral=collateral)
    measurement = "33d8736db756ed4997e04ba358d27833188f1932ff7b1d156904d3f560452fbb"
    judged = policy("sgx", measurement, "ConfigurationAndSWHardeningNeeded")
    return Sample(evidence, issued + 2 * 86400, b"Hello, world!".ljust(64, b"\0"), judged)


def tdx(name: str = "tdx_quote") -> Sample:
    collateral = _read(f"sgx-tdx/{name}_collateral.json").decode()
    issued = moment(json.loads(json.loads(collateral)["tcb_info"])["issueDate"])
    statement = _read(f"sgx-tdx/{name}")
    evidence = Evidence(kind="tdx", statement=statement, collateral=collateral)
    measured = statement[48 + 136 : 48 + 520]  # MRTD … RTMR3 as they lie in the quote
    measurement = hashlib.sha384(measured).hexdigest()
    bound = statement[48 + 520 : 48 + 584]
    return Sample(evidence, issued + 2 * 86400, bound, policy("tdx", measurement))


def sev_snp() -> Sample:
    return _sev_snp(bytes.fromhex(_read("sev-snp/report_milan.hex").decode()), "vcek_milan.der")


def sev_snp_debug() -> Sample:
    return _sev_snp(_read("sev-snp/attestation_2.bin"), "vcek_2.der")


def _sev_snp(report: bytes, chip: str) -> Sample:
    authorities = (_der("sev-snp/ask_milan.pem"), _der("sev-snp/ark_milan.pem"))
    certificates = (_read(f"sev-snp/{chip}"), *authorities)
    evidence = Evidence(kind="sev-snp", statement=report, certificates=certificates)
    judged = policy("sev-snp", report[0x90:0xC0].hex())
    return Sample(evidence, moment("2024-01-01T00:00:00Z"), report[0x50:0x90], judged)


def nitro() -> Sample:
    document = base64.b64decode(_read("nitro/attestation_document.b64"))
    evidence = Evidence(kind="nitro", statement=document)
    start = document.index(bytes.fromhex("3059301306072a8648ce3d0201"))
    judged = policy("nitro", "00" * 48, accept_debug=True)
    return Sample(evidence, 1_695_049_420.0, document[start : start + 91], judged)


SAMPLES = {"sgx": sgx, "tdx": tdx, "sev-snp": sev_snp, "nitro": nitro}
