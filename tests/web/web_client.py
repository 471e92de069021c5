"""The dashboard asked without sockets."""

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
from starlette.applications import Starlette

from veilgrid.roles.operator import SCHEMES
from veilgrid.secret import Secret
from veilgrid.web.app import Planning, create_app
from veilgrid.web.feed import Feed
from veilgrid.web.guard import Bounds, Token

TOKEN = "canary-token-3f9a1c7e5b2d8046"  # noqa: S105 - of these tests only
CAPACITY = {
    "mean_kw": 40.0,
    "capacity_kw": 25.0,
    "certified_kw": 24.0,
    "cvar_kw": 22.0,
    "normal_kw": 27.0,
    "installed_kw": 45.0,
    "confidence": 0.99,
    "devices": 3,
    "rejected": [],
    "scenarios": [{"scenario": "<b>usual</b>", "probability": 1.0, "mean_kw": 40.0}],
    "quantiles": [{"probability": 0.01, "kw": 25.0}, {"probability": 0.5, "kw": 41.0}],
}


def job_command(code: str) -> Callable[[Path, str, Path], tuple[str, ...]]:
    """A process that stands in for the planning one: it runs ``code`` with the three arguments."""
    return lambda scenario, scheme, target: (
        sys.executable,
        "-c",
        code,
        str(scenario),
        scheme,
        str(target),
    )


WRITES = (
    "import json,sys,pathlib;"
    "print(json.dumps({'kind':'iteration','iteration':7,'cost':5.5}),flush=True);"
    "print('no json',flush=True);"
    "print(json.dumps({'kind':'note','share':41}),flush=True);"
    "pathlib.Path(sys.argv[3]).mkdir()"
)
WAITS = "import sys; sys.stdin.read()"


def application(
    folder: Path, *, command: str = WRITES, bounds: Bounds | None = None, **more: Any
) -> Starlette:
    planning = Planning(
        token=Token(Secret(TOKEN)), schemes=tuple(SCHEMES), command=job_command(command)
    )
    return create_app(folder, more.pop("feed", Feed()), planning=planning, bounds=bounds, **more)


def talk(
    app: Starlette, story: Callable[[httpx.AsyncClient], Coroutine[Any, Any, Any]], **more: Any
) -> Any:
    """Run a story with a client whose requests never leave the process; jobs are ended after."""

    async def told() -> Any:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False, **more)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            try:
                return await story(client)
            finally:
                if app.state.web.jobs is not None:
                    await app.state.web.jobs.close()

    return asyncio.run(told())


def get(app: Starlette, *paths: str, **more: Any) -> list[httpx.Response]:
    """Fetch several paths."""

    async def story(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.get(path, **more) for path in paths]

    found: list[httpx.Response] = talk(app, story)
    return found


def findings(answer: httpx.Response) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(answer.content)["findings"]
    return found


def raw_get(app: Starlette, path: str) -> tuple[int, bytes]:
    """Fetch a path exactly as it stands: clients tidy dots away before they ask."""
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    asyncio.run(app(scope, receive, send))
    body = b"".join(one.get("body", b"") for one in sent)
    return sent[0]["status"], body
