"""``veilgrid serve``: the dashboard and HTTP interface of a folder of results."""

import ipaddress
import json
import os
import secrets
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import click

from veilgrid.errors import Finding, InputError, SetupError
from veilgrid.roles.operator import SCHEMES
from veilgrid.secret import Secret
from veilgrid.web.app import LOOPBACK, Planning, create_app
from veilgrid.web.feed import Feed
from veilgrid.web.guard import TOKEN_LENGTH_MIN, Token

CONNECTION_COUNT_MAX = 200
EVENTS = "events.jsonl"


@click.command()
@click.argument("folder", default=".", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", help="Address to listen on. Default: 127.0.0.1.")
@click.option("--port", default=8383, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File with the token; made if it is not there. Default: a fresh one, printed.",
)
@click.option("--events", type=click.Path(path_type=Path), help="Follow this file of events.")
@click.option("--name", "names", multiple=True, help="Another name of this host; may be repeated.")
@click.option("--read-only", is_flag=True, help="Show results only; nothing can be started.")
@click.option("--seed", type=int, help="Accepted by every verb; tokens are never repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, then serve.")
def serve(
    folder: Path,
    host: str,
    port: int,
    token_file: Path | None,
    events: Path | None,
    names: tuple[str, ...],
    read_only: bool,
    seed: int | None,  # noqa: ARG001 - part of the contract
    as_json: bool,
) -> int:
    """Show the results in FOLDER (default: here) in a browser until Ctrl-C.

    Whoever has the token can also plan scenarios. On an address that other machines reach, the
    token is needed for reading, too.

    Examples:
      veilgrid serve runs

      veilgrid serve runs --port 0 --token-file ~/.veilgrid-token --json
    """
    if not folder.is_dir():
        advice = "make it, or name the folder that --out was given"
        raise InputError([Finding(str(folder), "is no folder", advice)])
    text = secrets.token_urlsafe(32) if token_file is None else _token_of(token_file)
    token = Token(Secret(text))
    with _listening(host, port) as listener:
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listener.getsockname()[1]}/"
        is_open = not _is_loopback(host)
        planning = Planning(token=token, schemes=tuple(SCHEMES), command=_command)
        feed = Feed()
        app = create_app(
            folder,
            feed,
            planning=None if read_only else planning,
            events=events or folder / EVENTS,
            hosts=(*LOOPBACK, host.lower(), *(name.lower() for name in names)),
            reader=token if is_open else None,
        )
        needed = is_open or not read_only
        if as_json:
            told = {"url": url, "folder": str(folder), "read_only": read_only}
            own = text if needed and token_file is None else None
            file = str(token_file) if token_file else None
            click.echo(json.dumps({**told, "token": own, "token_file": file}))
        else:
            click.echo(f"dashboard: {url}")
            if needed:
                click.echo(f"token: {text if token_file is None else f'in {token_file}'}")
            if is_open:
                click.echo("other machines reach this address, without TLS: see docs/web.md")
            click.echo("Ctrl-C ends it")
        sys.stdout.flush()
        _run(app, listener, feed)
    return 0


def _command(scenario: Path, scheme: str, target: Path) -> Sequence[str]:
    module = "veilgrid.cli._serve_job"
    return (sys.executable, "-m", module, str(scenario), scheme, str(target))


def _run(app: object, listener: socket.socket, feed: Feed) -> None:
    """Serve until a signal; open streams end at once, for the server waits for connections."""
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            feed.close()
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        limit_concurrency=CONNECTION_COUNT_MAX,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=2,
    )
    try:
        Server(config).run(sockets=[listener])
    except KeyboardInterrupt:  # Uvicorn has shut down and raises it again.
        return


def _listening(host: str, port: int) -> socket.socket:
    """Return a bound socket.

    Raises
    ------
    SetupError
        The port is taken, or the address is not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        reason = error.strerror or type(error).__name__
        problem = f"cannot listen on {host} port {port}: {reason}"
        raise SetupError(f"{problem}; choose another --port, or 0 for a free one") from error
    return listener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _token_of(file: Path) -> str:
    """Read a token, or make one that only this user can read.

    Raises
    ------
    InputError
        Others can read the file, or the token is too short.
    SetupError
        It cannot be read or written.
    """
    try:
        if not file.exists():
            made = secrets.token_urlsafe(32)
            place = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(place, "w", encoding="utf-8") as new:
                new.write(made + "\n")
            return made
        text, mode = file.read_text(encoding="utf-8").strip(), file.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"{file} cannot be used as a token file: {error}") from error
    findings = []
    if mode & 0o077:
        findings.append(Finding(str(file), "can be read by others", f"chmod 600 {file}"))
    if len(text) < TOKEN_LENGTH_MIN:
        problem = f"holds {len(text)} characters, a token has at least {TOKEN_LENGTH_MIN}"
        findings.append(Finding(str(file), problem, "remove the file to have one made"))
    if findings:
        raise InputError(findings)
    return text
