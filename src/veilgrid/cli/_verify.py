"""``veilgrid verify``: check a ledger export, proofs, attestation, offline [ledger 6.3]."""

import json
from pathlib import Path

import click

from veilgrid.errors import Finding, InputError
from veilgrid.ledger.export import check_export, check_proof
from veilgrid.ledger.message import DIGEST_LENGTH


def _digest(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != DIGEST_LENGTH:
        problem = f"expected {2 * DIGEST_LENGTH} hexadecimal digits"
        raise InputError([Finding("--ledger", problem)])
    return digest


@click.command()
@click.argument(
    "export",
    required=False,
    metavar="[EXPORT]",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option(
    "--proof",
    "proofs",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="An inclusion or consistency proof to check against EXPORT; may be repeated.",
)
@click.option(
    "--attestation",
    "evidence",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Evidence of what a process runs; may be repeated.",
)
@click.option(
    "--policy",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="By what evidence is judged: attestation.toml.",
)
@click.option("--public-key", help="Of the process that was asked, hexadecimal.")
@click.option("--nonce", help="That it was asked with, hexadecimal.")
@click.option("--report-data", help="Instead of key and nonce: what evidence must contain.")
@click.option("--now", help="Time at which evidence must hold, ISO 8601. Default: now.")
@click.option("--ledger", help="Expected name of the ledger: digest of its first configuration.")
@click.option("--seed", type=int, help="Accepted by every verb; nothing here is random.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(
    export: Path | None,
    proofs: tuple[Path, ...],
    evidence: tuple[Path, ...],
    policy: Path | None,
    public_key: str | None,
    nonce: str | None,
    report_data: str | None,
    now: str | None,
    ledger: str | None,
    seed: int | None,  # noqa: ARG001 - part of the contract
    as_json: bool,
) -> int:
    """Check a ledger export and proofs against it, or attestation, without asking anybody."""
    from veilgrid.cli import _attestation

    attestations = []
    if evidence:
        attestations = _attestation.judged(evidence, policy, public_key, nonce, report_data, now)
    if export is None:
        if not evidence or proofs or ledger:
            advice = "name a ledger export, or evidence with --attestation"
            raise InputError([Finding("EXPORT", "is missing", advice)])
        accepted = all(one["accepted"] for one in attestations)
        if as_json:
            click.echo(json.dumps({"accepted": accepted, "attestations": attestations}))
        else:
            _attestation.show(attestations)
        return 0 if accepted else 1
    checked = check_export(export.read_bytes(), str(export), _digest(ledger))
    shown = [
        {"path": str(path), "problems": check_proof(path.read_bytes(), str(path), checked)}
        for path in proofs
    ]
    accepted = not checked.problems and not any(one["problems"] for one in (*shown, *attestations))
    found = {
        "accepted": accepted,
        "ledger": checked.ledger.hex(),
        "is_ledger_expected": ledger is not None and checked.ledger.hex() == ledger.lower(),
        "sequence": checked.sequence,
        "records": checked.record_count,
        "root": checked.root.hex(),
        "signers": list(checked.signers),
        "problems": list(checked.problems),
        "proofs": shown,
        "attestations": attestations,
    }
    if as_json:
        click.echo(json.dumps(found))
    else:
        _print(found, ledger is None)
        _attestation.show(attestations)
    return 0 if accepted else 1


def _print(found: dict[str, object], is_name_unknown: bool) -> None:
    verdict = "accepted" if found["accepted"] else "NOT accepted"
    click.echo(f"{verdict}: {found['records']} records up to sequence {found['sequence']}")
    click.echo(f"ledger  {found['ledger']}")
    click.echo(f"root    {found['root']}")
    click.echo(f"signers {', '.join(map(str, found['signers']))}")  # type: ignore[call-overload]
    for problem in found["problems"]:  # type: ignore[attr-defined]
        click.echo(f"  - {problem}")
    for proof in found["proofs"]:  # type: ignore[attr-defined]
        click.echo(f"proof {proof['path']}: {'; '.join(proof['problems']) or 'holds'}")
    if is_name_unknown:
        click.echo("compare the ledger's name with one that you trust, or pass it with --ledger")
