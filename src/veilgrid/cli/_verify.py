"""``veilgrid verify``: check a ledger export and proofs against it, offline [ledger 6.3]."""

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
@click.argument("export", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--proof",
    "proofs",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="An inclusion or consistency proof to check against EXPORT; may be repeated.",
)
@click.option("--ledger", help="Expected name of the ledger: digest of its first configuration.")
@click.option("--seed", type=int, help="Accepted by every verb; nothing here is random.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(
    export: Path,
    proofs: tuple[Path, ...],
    ledger: str | None,
    seed: int | None,  # noqa: ARG001 - part of the contract
    as_json: bool,
) -> int:
    """Check a ledger export, and proofs against it, without asking anybody."""
    checked = check_export(export.read_bytes(), str(export), _digest(ledger))
    shown = [
        {"path": str(path), "problems": check_proof(path.read_bytes(), str(path), checked)}
        for path in proofs
    ]
    accepted = not checked.problems and not any(proof["problems"] for proof in shown)
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
    }
    if as_json:
        click.echo(json.dumps(found))
    else:
        _print(found, ledger is None)
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
