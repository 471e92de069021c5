"""`veilgrid serve` as somebody starts it: a real socket, an ephemeral port, the printed token."""

import http.client
import json
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

SERVE = [sys.executable, "-m", "veilgrid", "serve"]


@contextmanager
def _served(
    folder: Path, *options: str
) -> Iterator[tuple[dict[str, Any], http.client.HTTPConnection]]:
    """Start a server, read what it prints, and end it with Ctrl-C."""
    process = subprocess.Popen(
        [*SERVE, str(folder), "--port", "0", "--json", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        told = json.loads(process.stdout.readline())  # type: ignore[union-attr]
        place = urlsplit(told["url"])
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
        yield told, connection
        connection.close()
    finally:
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert (process.returncode, rest, errors) == (0, "", "")


def _ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: object = None,
    token: str = "",
) -> tuple[int, Any]:
    headers = {"content-type": "application/json"} | (
        {"authorization": f"Bearer {token}"} if token else {}
    )
    connection.request(method, path, json.dumps(body) if body else None, headers)
    answer = connection.getresponse()
    text = answer.read()
    return answer.status, json.loads(text) if path.startswith("/api") else text.decode()


def test_a_day_is_planned_from_the_browser(tmp_path: Path) -> None:
    """From the token on the terminal to the page of the finished run, with progress on the way."""
    with _served(tmp_path) as (told, connection):
        assert _ask(connection, "GET", "/api/health")[1]["status"] == "ok"
        assert _ask(connection, "POST", "/api/runs", {"scenario": "six-bus"})[0] == 401
        order = {"scenario": "six-bus", "scheme": "exchange", "name": "today"}
        status, job = _ask(connection, "POST", "/api/runs", order, told["token"])
        assert (status, job["status"]) == (202, "queued")
        connection.request("GET", "/api/events")
        seen, last = [], {}
        with connection.getresponse() as stream:
            while last.get("kind") != "job" or last["status"] in ("queued", "running"):
                line = stream.readline()
                assert line, "the stream stays open"
                if line.startswith(b"data: "):
                    last = json.loads(line[6:])
                    seen.append(last["kind"])
        assert last["status"] == "done"
        assert "iteration" in seen
        connection.close()
        status, page = _ask(connection, "GET", "/runs/today")
        assert status == 200
        assert "The exchange scheme converged" in page
        assert told["token"] not in page
    assert (tmp_path / "today" / "report.html").is_file()


def test_a_token_file_is_made_for_its_owner_only(tmp_path: Path) -> None:
    """A token that others can read is none."""
    file = tmp_path / "token"
    with _served(tmp_path, "--token-file", str(file)) as (told, connection):
        assert told["token"] is None
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        token = file.read_text().strip()
        assert len(token) >= 32
        assert _ask(connection, "POST", "/api/runs", {"scenario": "nix"}, token)[0] == 422
        place = urlsplit(told["url"])
        watching = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
        watching.request("GET", "/api/events")
        assert watching.getresponse().readline()
    watching.close()  # It was open at the end: nothing may be printed about that.
    file.chmod(0o644)
    done = subprocess.run(
        [*SERVE, str(tmp_path), "--token-file", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "can be read by others" in done.stderr
    assert token not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("folder", "code", "words"), [(".", 3, "--port"), ("missing", 2, "is no folder")]
)
def test_what_stands_in_the_way_is_said(tmp_path: Path, folder: str, code: int, words: str) -> None:
    """The commonest mistake: another one is running already."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [*SERVE, str(tmp_path / folder), "--port", port],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == code
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
