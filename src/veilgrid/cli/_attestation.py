"""The part of ``veilgrid verify`` that judges evidence of attestation [attestation 2]."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from veilgrid.cli._key import hexadecimal
from veilgrid.errors import Finding, InputError
from veilgrid.node.attest.evidence import BINDING_LENGTH, NONCE_LENGTH_MIN, binding, decode
from veilgrid.node.attest.policy import read_policy
from veilgrid.node.attest.verify import examine
from veilgrid.signature import KEY_LENGTH


def judged(
    paths: tuple[Path, ...],
    policy: Path | None,
    public_key: str | None,
    nonce: str | None,
    report_data: str | None,
    now: str | None,
) -> list[dict[str, Any]]:
    """Return one entry for each file of evidence: what it claims and every reason against it.

    Raises
    ------
    InputError
        Options that do not say what evidence has to be bound to, or no policy; a file that is none.
    """
    findings = []
    if policy is None:
        advice = "`veilgrid init` writes attestation.toml"
        findings.append(Finding("--policy", "is missing: by what is evidence judged?", advice))
    is_pair = public_key is not None and nonce is not None
    if is_pair == (report_data is not None) or (public_key is None) != (nonce is None):
        problem = "either --public-key and --nonce, or --report-data, say what was asked"
        advice = "evidence that is bound to nothing may be old, or another's"
        findings.append(Finding("options", problem, advice))
    if findings or policy is None:
        raise InputError(findings)
    if report_data is not None:
        bound = hexadecimal("--report-data", report_data, BINDING_LENGTH)
    else:
        key = hexadecimal("--public-key", public_key or "", KEY_LENGTH)
        bound = binding(key, hexadecimal("--nonce", nonce or "", NONCE_LENGTH_MIN))
    rules, now_s = read_policy(policy), _seconds(now)
    shown = []
    for path in paths:
        verdict = examine(decode(path.read_bytes(), str(path)), rules, now_s, bound)
        claims = verdict.claims
        shown.append(
            {
                "path": str(path),
                "accepted": verdict.is_accepted,
                "kind": claims.kind if claims else None,
                "hardware": claims.hardware if claims else None,
                "measurement": claims.measurement.hex() if claims else None,
                "status": claims.status if claims else None,
                "advisories": list(claims.advisories) if claims else [],
                "registers": verdict.registers,
                "problems": list(verdict.problems),
            }
        )
    return shown


def show(found: list[dict[str, Any]]) -> None:
    """Print the entries for a person."""
    for one in found:
        verdict = "accepted" if one["accepted"] else "NOT accepted"
        click.echo(f"attestation {one['path']}: {verdict}")
        if one["kind"] is not None:
            what = "hardware" if one["hardware"] else "NOT hardware"
            click.echo(f"  kind {one['kind']} ({what}), status {one['status']}")
            click.echo(f"  measurement {one['measurement']}")
        for problem in one["problems"]:
            click.echo(f"  - {problem}")


def _seconds(text: str | None) -> float:
    if text is None:
        return time.time()
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        problem = f"is {text[:40]!r}, ISO 8601 is needed"
        raise InputError([Finding("--now", problem, "for example 2026-05-04T12:00:00Z")]) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
