"""The dashboard as an ASGI application [docs/web.md].

    create_app(folder, feed)                       show the results below a folder, and live events
    create_app(folder, feed, planning=Planning(…)) also plan scenarios, for whoever has the token

A route under ``/api`` returns a structure of :mod:`veilgrid.web.model` as JSON; the page beside it
renders the same structure. ``feed.publish(event)`` shows an event to everybody who looks
(:mod:`veilgrid.web.feed`); pass ``events=PATH`` to follow a file of events.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

import msgspec
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from veilgrid.errors import Finding, InputError
from veilgrid.report import words
from veilgrid.report.page import asset, embedded
from veilgrid.report.plot import fixed
from veilgrid.web.feed import HEARTBEAT_S, Feed, follow
from veilgrid.web.guard import HEADERS, REPORT_POLICY, Bounds, Guard, Token, bearer
from veilgrid.web.jobs import Command, Job, Jobs, QueueFull, order_of
from veilgrid.web.model import Figure, Health, Scenarios, Version
from veilgrid.web.shelf import Missing, Shelf

LOOPBACK = ("127.0.0.1", "localhost", "::1")
FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Planning:
    """What starting work needs: the token, the schemes, the process that plans."""

    token: Token
    schemes: Sequence[str]
    command: Command


@dataclass(slots=True)
class State:
    """What routes share."""

    shelf: Shelf
    feed: Feed
    bounds: Bounds
    planning: Planning | None
    jobs: Jobs | None
    heartbeat_s: float = HEARTBEAT_S
    stream_count: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


def create_app(
    folder: Path,
    feed: Feed | None = None,
    *,
    planning: Planning | None = None,
    events: Path | None = None,
    bounds: Bounds | None = None,
    hosts: Collection[str] = LOOPBACK,
    reader: Token | None = None,
    heartbeat_s: float = HEARTBEAT_S,
) -> Starlette:
    """Build the dashboard of one folder.

    Parameters
    ----------
    folder
        With what ``--out`` wrote; new runs are written into it.
    feed
        Where live events come from; a silent one if None.
    planning
        None: nothing can be started.
    events
        A file to which somebody appends events.
    bounds
        Of the listener.
    hosts
        Names by which this server is called.
    reader
        A token that every request needs, for a server that other machines reach.
    heartbeat_s : > 0
        A silent stream says that it is there so often.
    """
    limits, live = bounds or Bounds(), feed or Feed()
    shelf = Shelf(Path(folder))
    jobs = None if planning is None else Jobs(shelf.folder, live, limits, planning.command)
    state = State(shelf, live, limits, planning, jobs, heartbeat_s)

    app = Starlette(
        routes=_routes(),
        lifespan=_lifespan(state, events),
        middleware=[Middleware(Guard, bounds=limits, hosts=hosts, reader=reader)],
        exception_handlers={
            HTTPException: _on_http,
            InputError: _on_input,
            Missing: _on_missing,
            QueueFull: _on_full,
            Exception: _on_bug,
        },
    )
    app.state.web = state
    return app


def _lifespan(
    state: State, events: Path | None
) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    """Follow the file of events while the server runs; end streams and jobs with it."""

    @asynccontextmanager
    async def running(_app: Starlette) -> AsyncIterator[None]:
        if events is not None:
            state.tasks.append(asyncio.create_task(follow(events, state.feed)))
        yield
        state.feed.close()
        for task in state.tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        if state.jobs is not None:
            await state.jobs.close()

    return running


def _routes() -> list[Route]:
    return [
        Route("/", _overview),
        Route("/runs/{id:path}", _run),
        Route("/rounds/{id:path}", _round),
        Route("/compare", _compare),
        Route("/plan", _plan_page),
        Route("/plan", _plan_form, methods=["POST"]),
        Route("/jobs/{number:int}", _job),
        Route("/jobs/{number:int}/cancel", _cancel_form, methods=["POST"]),
        Route("/live", _live),
        Route("/report/{id:path}", _report),
        Route("/static/{name}", _static),
        Route("/api/health", _health),
        Route("/api/version", _version),
        Route("/api/runs", _overview),
        Route("/api/runs", _start, methods=["POST"]),
        Route("/api/runs/{id:path}", _run),
        Route("/api/rounds/{id:path}", _round),
        Route("/api/compare", _compare),
        Route("/api/tables/{table}/{id:path}", _table),
        Route("/api/scenarios", _plan_page),
        Route("/api/jobs", _jobs),
        Route("/api/jobs/{number:int}", _job),
        Route("/api/jobs/{number:int}", _cancel, methods=["DELETE"]),
        Route("/api/live", _live),
        Route("/api/events", _events),
    ]


# -- answers ---------------------------------------------------------------------------


def _of(request: Request) -> State:
    state: State = request.app.state.web
    return state


def _is_api(request: Request) -> bool:
    return request.url.path.startswith("/api/")


def _json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, "application/json")


def _answer(request: Request, value: Any, template: str, status: int = 200) -> Response:
    """Return a structure as JSON, or as the page that renders it."""
    if _is_api(request):
        return _json(value, status)
    return _page(request, template, value, status)


def _page(request: Request, template: str, value: Any, status: int = 200) -> Response:
    pictures: list[Figure] = getattr(value, "pictures", [])
    text = (
        _environment()
        .get_template(template)
        .render(
            view=value,
            pictures=pictures,
            figures=embedded({one.name: one.figure for one in pictures}) if pictures else "",
            can_start=_of(request).planning is not None,
            path=request.url.path,
        )
    )
    return Response(text, status, media_type="text/html; charset=utf-8")


class Problems(msgspec.Struct, frozen=True):
    """Why a request was not answered as asked."""

    title: str
    findings: list[Finding]


def _refuse(request: Request, status: int, title: str, findings: Sequence[Finding]) -> Response:
    if _is_api(request):
        return _json({"findings": list(findings)}, status)
    return _page(request, "problem.html.j2", Problems(title, list(findings)), status)


async def _on_http(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 500)
    problem = str(getattr(error, "detail", "")) or "not possible"
    answer = _refuse(request, status, problem, [Finding("request", problem)])
    answer.headers.update(getattr(error, "headers", None) or {})
    return answer


async def _on_input(request: Request, error: Exception) -> Response:
    findings = error.findings if isinstance(error, InputError) else ()
    told = [
        Finding(_inside(request, f.where), _inside(request, f.problem), f.advice) for f in findings
    ]
    return _refuse(request, 422, "That cannot be done", told)


def _inside(request: Request, text: str) -> str:
    """Leave out where the served folder lies on this machine."""
    return text.replace(f"{_of(request).shelf.folder}/", "")


async def _on_missing(request: Request, _error: Exception) -> Response:
    finding = Finding("request", "there is no such thing here", "GET /api/runs lists what there is")
    return _refuse(request, 404, "Not found", [finding])


async def _on_full(request: Request, _error: Exception) -> Response:
    most = _of(request).bounds.queue_count
    finding = Finding("queue", f"{most} jobs wait already", "try again when one has ended")
    answer = _refuse(request, 429, "The queue is full", [finding])
    answer.headers["retry-after"] = "30"
    return answer


async def _on_bug(request: Request, error: Exception) -> Response:
    """Name the kind of an error only: its text may hold anything."""
    finding = Finding("server", f"failed with {type(error).__name__}", "see its standard error")
    answer = _refuse(request, 500, "A bug in veilgrid", [finding])
    answer.headers.update(HEADERS)  # This answer does not pass the guard.
    return answer


# -- reading ---------------------------------------------------------------------------


def _overview(request: Request) -> Response:
    return _answer(request, _of(request).shelf.overview(), "runs.html.j2")


def _run(request: Request) -> Response:
    name = request.path_params["id"]
    wanted = not _is_api(request) or request.query_params.get("figures") == "yes"
    return _answer(request, _of(request).shelf.run(name, with_figures=wanted), "run.html.j2")


def _round(request: Request) -> Response:
    return _answer(request, _of(request).shelf.round(request.path_params["id"]), "round_.html.j2")


def _compare(request: Request) -> Response:
    names = request.query_params.getlist("run")
    wanted = not _is_api(request) or request.query_params.get("figures") == "yes"
    found = _of(request).shelf.comparison(names, with_figures=wanted)
    return _answer(request, found, "side.html.j2")


def _table(request: Request) -> Response:
    table, name = request.path_params["table"], request.path_params["id"]
    text = _of(request).shelf.table(name, table)
    headers = {"content-disposition": f'attachment; filename="{table}.csv"'}
    return Response(text, headers=headers, media_type="text/csv; charset=utf-8")


def _report(request: Request) -> Response:
    text = _of(request).shelf.html(request.path_params["id"])
    headers = {"content-security-policy": REPORT_POLICY}
    return Response(text, headers=headers, media_type="text/html; charset=utf-8")


def _live(request: Request) -> Response:
    return _answer(request, _of(request).feed.live(), "live.html.j2")


def _health(request: Request) -> Response:
    state = _of(request)
    waiting = 0
    if state.jobs is not None:
        waiting = sum(job.status == "queued" for job in state.jobs.all().jobs)
    return _json(Health("ok", waiting, state.stream_count))


def _version(_request: Request) -> Response:
    return _json(Version("veilgrid", version("veilgrid")))


async def _events(request: Request) -> Response:
    """Stream events; ``limit`` ends the stream after so many."""
    state = _of(request)
    if state.stream_count >= state.bounds.stream_count:
        raise HTTPException(503, "too many live streams are open", {"retry-after": "10"})
    shown = request.headers.get("last-event-id") or request.query_params.get("after") or "0"
    most = request.query_params.get("limit")
    wrong = [
        Finding(name, "is no whole number")
        for name, text in (("after", shown), ("limit", most or "0"))
        if not (text.isascii() and text.isdecimal() and len(text) < 16)
    ]
    if wrong:
        raise InputError(wrong)

    async def body() -> AsyncIterator[bytes]:
        sent = 0
        state.stream_count += 1
        try:
            async for part in state.feed.stream(int(shown), state.heartbeat_s):
                yield part
                sent += part.startswith(b"id:")
                if most is not None and sent >= int(most):
                    return
        finally:
            state.stream_count -= 1

    headers = {"x-accel-buffering": "no"}
    return StreamingResponse(body(), headers=headers, media_type="text/event-stream")


def _static(request: Request) -> Response:
    found = _files().get(request.path_params["name"])
    if found is None:
        raise Missing(request.path_params["name"])
    text, kind = found
    return Response(text, headers={"cache-control": "max-age=3600"}, media_type=kind)


# -- starting --------------------------------------------------------------------------


def _scenarios(request: Request) -> Scenarios:
    state = _of(request)
    schemes = list(state.planning.schemes) if state.planning else []
    known = [entry for entry, _ in state.shelf.scenarios().values()]
    return Scenarios(known, schemes, state.planning is not None)


def _plan_page(request: Request) -> Response:
    return _answer(request, _scenarios(request), "plan.html.j2")


def _jobs_of(request: Request) -> tuple[Planning, Jobs]:
    state = _of(request)
    if state.planning is None or state.jobs is None:
        raise HTTPException(403, "this server starts nothing")
    return state.planning, state.jobs


def _check(planning: Planning, shown: str | None) -> None:
    if not planning.token.is_right(shown):
        asked = {"www-authenticate": 'Bearer realm="veilgrid"'}
        raise HTTPException(401, "starting and ending work needs the token", asked)


async def _submit(request: Request, given: object) -> Job:
    state = _of(request)
    planning, jobs = _jobs_of(request)
    known = await asyncio.to_thread(state.shelf.scenarios)
    paths = {name: path for name, (_, path) in known.items()}
    taken = jobs.names()
    order = order_of(given, paths, planning.schemes, state.shelf.folder, taken)
    return jobs.submit(order, paths[order.scenario])


async def _start(request: Request) -> Response:
    planning, _ = _jobs_of(request)
    _check(planning, bearer(request))
    if _kind(request) != "application/json":
        raise HTTPException(415, "the body must be application/json")
    body = await request.body()
    try:
        given = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise HTTPException(400, "the body is no JSON") from None
    job = await _submit(request, given)
    return _json(job, 202, {"location": f"/api/jobs/{job.id}"})


async def _form(request: Request) -> dict[str, str]:
    """Read a form of this dashboard; its token comes with it."""
    if _kind(request) != FORM:
        raise HTTPException(415, f"the body must be {FORM}")
    body = (await request.body()).decode("utf-8", "replace")
    try:
        fields = parse_qs(body, keep_blank_values=True, max_num_fields=20)
    except ValueError:
        raise HTTPException(400, "the form has too many fields") from None
    return {name: values[0] for name, values in fields.items()}


async def _plan_form(request: Request) -> Response:
    planning, _ = _jobs_of(request)
    given = await _form(request)
    _check(planning, given.pop("token", ""))
    job = await _submit(request, {name: value for name, value in given.items() if value})
    return RedirectResponse(f"/jobs/{job.id}", 303)


async def _cancel_form(request: Request) -> Response:
    planning, jobs = _jobs_of(request)
    _check(planning, (await _form(request)).get("token"))
    job = await jobs.cancel(request.path_params["number"])
    if job is None:
        raise Missing
    return RedirectResponse(f"/jobs/{job.id}", 303)


async def _cancel(request: Request) -> Response:
    planning, jobs = _jobs_of(request)
    _check(planning, bearer(request))
    job = await jobs.cancel(request.path_params["number"])
    if job is None:
        raise Missing
    return _json(job)


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _jobs(request: Request) -> Response:
    return _json(_jobs_of(request)[1].all())


async def _job(request: Request) -> Response:
    job = _jobs_of(request)[1].get(request.path_params["number"])
    if job is None:
        raise Missing
    return _answer(request, job, "job.html.j2")


# -- files of the package --------------------------------------------------------------


@cache
def _files() -> dict[str, tuple[str, str]]:
    """Every file under ``/static``: text and media type; nothing else can be asked for."""
    own = resources.files("veilgrid.web").joinpath("static")
    script = "text/javascript; charset=utf-8"
    found = {
        "page.css": (asset("page.css"), "text/css; charset=utf-8"),
        "page.js": (asset("page.js"), script),
        "plotly.js": (str(get_plotlyjs()), script),
    }
    for name, kind in (("web.css", "text/css; charset=utf-8"), ("live.js", script)):
        found[name] = (own.joinpath(name).read_text(encoding="utf-8"), kind)
    return found


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("veilgrid.web"), PackageLoader("veilgrid.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["fixed"] = fixed
    environment.filters["place"] = lambda text: quote(str(text), safe="/")
    environment.globals["size"] = words.size
    environment.globals["statuses"] = words.STATUSES
    return environment
