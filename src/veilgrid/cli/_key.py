"""``veilgrid key``: make keys, replace them while processes run, look at them [node 12]."""

import json
import time
from dataclasses import asdict
from pathlib import Path

import click

from veilgrid.errors import Finding, InputError
from veilgrid.node import scaffold
from veilgrid.node.attest.evidence import NONCE_LENGTH_MIN, binding, encode
from veilgrid.node.certificate import VALID_DAYS, check_name, write_public
from veilgrid.node.keys import KeyFolder, KeyState, Step
from veilgrid.node.settings import ROLES, ProcessEntry, Role, read_settings

_SEED_HELP = "Accepted by every verb; keys are never repeatable."
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_SIGNAL = "send SIGHUP to the processes that run, so that they take them up"


@click.group()
def key() -> None:
    """Make keys of a deployment, replace them while processes run, look at them."""


@key.command()
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.argument("node")
@click.option("--role", type=click.Choice(ROLES), required=True, help="Of the new process.")
@click.option("--host", default="127.0.0.1", help="Where it listens. Default: 127.0.0.1.")
@click.option("--port", type=int, help="Where it listens; without, it only dials.")
@click.option("--bus", "buses", multiple=True, help="A site that it runs; may be repeated.")
@click.option("--valid-days", default=float(VALID_DAYS), help="Of the certificate. Default: 30.")
@click.option("--seed", type=int, help=_SEED_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def new(
    folder: Path,
    node: str,
    role: Role,
    host: str,
    port: int | None,
    buses: tuple[str, ...],
    valid_days: float,
    seed: int | None,  # noqa: ARG001 - part of the contract
    as_json: bool,
) -> int:
    """Add the process NODE to the deployment in DIR: keys, its file, its entry."""
    _check_days(valid_days)
    check_name("node", node)
    entry = ProcessEntry(node=node, role=role, verify_key="", host=host, port=port, buses=buses)
    made = scaffold.add(folder, entry, valid_days)
    config = folder / "nodes" / f"{node}.toml"
    if as_json:
        found = {"node": node, "role": role, "verify_key": made.verify_key, "config": str(config)}
        click.echo(json.dumps(found))
    else:
        click.echo(f"{role} {node} signs under {made.verify_key}")
        click.echo(f"wrote {config}; copy deployment.toml to everybody again")
    return 0


@key.command()
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.argument("nodes", nargs=-1, metavar="[NODE]...")
@click.option("--signature", is_flag=True, help="Also a new signature key; name the processes.")
@click.option("--valid-days", default=float(VALID_DAYS), help="Of the certificates. Default: 30.")
@click.option("--seed", type=int, help=_SEED_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def rotate(
    folder: Path,
    nodes: tuple[str, ...],
    signature: bool,
    valid_days: float,
    seed: int | None,  # noqa: ARG001 - part of the contract
    as_json: bool,
) -> int:
    """Give processes new TLS keys and certificates: all, or each NODE."""
    _check_days(valid_days)
    if signature and not nodes:
        advice = "a new signature key is a new identity: do it for one process at a time"
        raise InputError([Finding("NODE", "is missing for --signature", advice)])
    keys = KeyFolder.open(folder)
    rotated = keys.rotate_signatures(nodes) if signature else keys.rotate(nodes, valid_days)
    if as_json:
        click.echo(json.dumps({"rotated": rotated, "signature": signature}))
    else:
        click.echo(f"new keys and certificates for {', '.join(rotated)} in {keys.keys}")
        click.echo("copy deployment.toml to everybody and restart them" if signature else _SIGNAL)
    return 0


@key.command()
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.option(
    "--step",
    type=click.Choice(["introduce", "switch", "retire"]),
    required=True,
    help="One of three; processes take up their files between two of them.",
)
@click.option("--seed", type=int, help=_SEED_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def authority(
    folder: Path,
    step: Step,
    seed: int | None,  # noqa: ARG001 - part of the contract
    as_json: bool,
) -> int:
    """Replace the authority of the deployment in DIR while its processes run."""
    keys = KeyFolder.open(folder)
    changed = keys.replace_authority(step)
    following = {"introduce": "switch", "switch": "retire", "retire": None}[step]
    if as_json:
        click.echo(json.dumps({"step": step, "changed": changed, "next": following}))
    else:
        click.echo(f"{step}: wrote files of {len(changed)} processes in {keys.keys}")
        click.echo(f"{_SIGNAL}, then --step {following}" if following else _SIGNAL)
    return 0


@key.command()
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.argument("nodes", nargs=-1, metavar="[NODE]...")
@click.option("--seed", type=int, help=_SEED_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(
    folder: Path,
    nodes: tuple[str, ...],
    seed: int | None,  # noqa: ARG001 - part of the contract
    as_json: bool,
) -> int:
    """Look at keys and certificates of the deployment in DIR; nothing secret is shown."""
    states = KeyFolder(folder).states(time.time(), nodes)
    has_problem = any(state.problems for state in states)
    if as_json:
        click.echo(json.dumps({"sound": not has_problem, "keys": [asdict(one) for one in states]}))
    else:
        _show_states(states)
    return 1 if has_problem else 0


@key.command()
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.argument("node")
@click.option("--nonce", required=True, help="Drawn by who asks: 32 hexadecimal digits or more.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for NODE.evidence.json.")
@click.option("--seed", type=int, help=_SEED_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def attest(
    folder: Path,
    node: str,
    nonce: str,
    out: Path | None,
    seed: int | None,  # noqa: ARG001 - part of the contract
    as_json: bool,
) -> int:
    """Quote what NODE runs, by software: for development, NOT hardware."""
    settings = read_settings(folder / "nodes" / f"{node}.toml")
    provider = settings.provider()
    if provider is None:
        advice = "evidence of hardware is made by its own tools [docs/protocol/attestation.md]"
        raise InputError([Finding(str(settings.path), "names no software_root", advice)])
    asked = binding(bytes.fromhex(settings.me.verify_key), hexadecimal("--nonce", nonce))
    evidence = provider.quote(asked, time.time())
    path = (out or folder) / f"{node}.evidence.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_public(path, encode(evidence))
    found = {
        "node": node,
        "kind": evidence.kind,
        "hardware": provider.hardware,
        "measurement": provider.measurement.hex(),
        "path": str(path),
    }
    if as_json:
        click.echo(json.dumps(found))
    else:
        click.echo(f"quoted by software, NOT hardware: {provider.measurement.hex()}")
        click.echo(f"wrote {path}; whoever asked checks it with")
        click.echo(
            f"  veilgrid verify --attestation {path} --policy {settings.policy_path} "
            f"--public-key {settings.me.verify_key} --nonce {nonce}"
        )
    return 0


def hexadecimal(option: str, text: str, length_min: int = NONCE_LENGTH_MIN) -> bytes:
    """Return the octets of an option, or a finding."""
    try:
        octets = bytes.fromhex(text)
    except ValueError:
        octets = b""
    if len(octets) < length_min:
        problem = f"expected {2 * length_min} hexadecimal digits or more"
        raise InputError([Finding(option, problem)])
    return octets


def _check_days(valid_days: float) -> None:
    if not 0 < valid_days <= 3650:
        problem = f"is {valid_days:g}, must be above 0 and at most 3650"
        raise InputError([Finding("--valid-days", problem)])


def _show_states(states: list[KeyState]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("process", "role", "address", "days left", "sealed", "signs under"):
        table.add_column(name, no_wrap=True)
    for one in states:
        left = "–" if one.days_left is None else f"{one.days_left:.1f}"
        sealed = "yes" if one.is_sealed else "no"
        table.add_row(one.node, one.role, one.address, left, sealed, f"{one.verify_key[:16]}…")
    Console().print(table)
    for one in states:
        for problem in one.problems:
            click.echo(f"  - {one.node}: {problem}")
