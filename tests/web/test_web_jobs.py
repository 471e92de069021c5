"""Plans that the dashboard starts: who may, what is refused, one at a time, ended on request."""

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import httpx
import pytest
from web_client import TOKEN, WAITS, application, findings, get, talk

from veilgrid.web.app import create_app
from veilgrid.web.guard import Bounds

KEY = {"authorization": f"Bearer {TOKEN}"}
ORDER = {"scenario": "six-bus", "scheme": "central"}


async def _over(client: httpx.AsyncClient, number: int) -> dict[str, object]:
    """Wait until a job is over."""
    for _ in range(1000):
        job: dict[str, object] = (await client.get(f"/api/jobs/{number}")).json()
        if job["status"] not in ("queued", "running"):
            return job
        await asyncio.sleep(0.02)
    raise AssertionError("the job never ended")


async def _running(client: httpx.AsyncClient, number: int) -> None:
    for _ in range(1000):
        if (await client.get(f"/api/jobs/{number}")).json()["status"] == "running":
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the job never started")


BOUNDS = Bounds(requests_per_s=1e6, burst_count=1_000_000)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": f"Bearer {TOKEN[:-1]}"}, 401),
        ({"authorization": f"Bearer {TOKEN}x"}, 401),
        ({"authorization": f"Basic {TOKEN}"}, 401),
        ({"cookie": f"token={TOKEN}"}, 401),
        (KEY, 202),
    ],
)
def test_only_the_token_starts_work(folder: Path, headers: dict[str, str], status: int) -> None:
    """Whoever finds the page must not use the machine."""

    async def story(client: httpx.AsyncClient) -> tuple[httpx.Response, httpx.Response]:
        answer = await client.post("/api/runs", json=ORDER, headers=headers)
        return answer, await client.get("/api/jobs")

    answer, jobs = talk(application(folder, command=WAITS), story)
    assert answer.status_code == status
    assert len(jobs.json()["jobs"]) == (status == 202)


def test_the_token_is_not_taken_from_an_address(folder: Path) -> None:
    """Addresses are written into histories and logs."""

    async def story(client: httpx.AsyncClient) -> list[int]:
        asked = await client.post(f"/api/runs?token={TOKEN}", json=ORDER)
        form = await client.post(f"/plan?token={TOKEN}", data=ORDER)
        return [asked.status_code, form.status_code]

    assert talk(application(folder), story) == [401, 401]


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, ["key scenario"]),
        ([], ["body"]),
        ("six-bus", ["body"]),
        ({"scenario": "nix"}, ["key scenario"]),
        ({"scenario": "../six-bus"}, ["key scenario"]),
        ({"scenario": 5}, ["key scenario"]),
        ({"scenario": ["six-bus"]}, ["key scenario"]),
        ({**ORDER, "scheme": "fastest"}, ["key scheme"]),
        ({**ORDER, "scheme": None}, ["key scheme"]),
        ({**ORDER, "name": "../evil"}, ["key name"]),
        ({**ORDER, "name": ".."}, ["key name"]),
        ({**ORDER, "name": "/etc/x"}, ["key name"]),
        ({**ORDER, "name": ""}, ["key name"]),
        ({**ORDER, "name": "a" * 65}, ["key name"]),
        ({**ORDER, "name": "a\n"}, ["key name"]),
        ({**ORDER, "name": "june"}, ["key name"]),
        ({**ORDER, "seed": 1}, ["key 'seed'"]),
        (
            {"scenario": "x", "scheme": "y", "name": "Z", "w": 0},
            ["key 'w'", "key scenario", "key scheme", "key name"],
        ),
    ],
)
def test_every_broken_rule_of_an_order_is_told_at_once(
    folder: Path, body: object, where: list[str]
) -> None:
    """Nobody likes to learn of his mistakes one by one; nothing is started on the way."""

    async def story(client: httpx.AsyncClient) -> tuple[httpx.Response, httpx.Response]:
        answer = await client.post("/api/runs", json=body, headers=KEY)
        return answer, await client.get("/api/jobs")

    answer, jobs = talk(application(folder), story)
    assert answer.status_code == 422
    assert [one["where"] for one in findings(answer)] == where
    assert jobs.json() == {"jobs": []}


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/json", b"{", 400),
        ("application/json", b"\xff", 400),
        ("application/json", b"[" * 5000, 400),
        ("text/plain", b'{"scenario": "six-bus"}', 415),
        ("application/x-www-form-urlencoded", b"scenario=six-bus", 415),
    ],
)
def test_bodies_that_are_no_json_are_refused(
    folder: Path, kind: str, body: bytes, status: int
) -> None:
    """A form of another site can send plain text, but not JSON."""

    async def story(client: httpx.AsyncClient) -> int:
        headers = {**KEY, "content-type": kind}
        return (await client.post("/api/runs", content=body, headers=headers)).status_code

    assert talk(application(folder), story) == status


def test_a_job_is_told_while_it_runs_and_shows_its_run(folder: Path) -> None:
    """Progress comes from the process; what it says that is no event is left out."""

    async def story(client: httpx.AsyncClient) -> tuple[dict[str, object], str, str]:
        started = await client.post("/api/runs", json={**ORDER, "name": "mine"}, headers=KEY)
        assert started.headers["location"] == "/api/jobs/1"
        job = await _over(client, 1)
        stream = await client.get("/api/events?limit=4")
        return job, stream.text, (await client.get("/jobs/1")).text

    job, stream, page = talk(application(folder, bounds=BOUNDS), story)
    assert job["status"] == "done"
    assert job["run"] == "mine"
    assert (job["iteration"], job["cost"]) == (7, 5.5)
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: ")]
    told = [(one["kind"], one["status"]) for one in events]
    wanted = [("job", "queued"), ("job", "running"), ("iteration", "running"), ("job", "done")]
    assert told == wanted
    assert {one["source"] for one in events} == {"job 1"}
    assert 'href="/runs/mine"' in page


def test_jobs_run_one_at_a_time_and_the_queue_ends(folder: Path) -> None:
    """Ten clicks must not start ten solvers."""

    async def story(client: httpx.AsyncClient) -> tuple[list[int], list[str], list[str]]:
        codes = []
        first = await client.post("/api/runs", json=ORDER, headers=KEY)
        await _running(client, first.json()["id"])
        for _ in range(3):
            answer = await client.post("/api/runs", json=ORDER, headers=KEY)
            codes.append(answer.status_code)
        jobs = (await client.get("/api/jobs")).json()["jobs"]
        return codes, [job["status"] for job in jobs], [job["order"]["name"] for job in jobs]

    bounds = Bounds(requests_per_s=1e6, burst_count=1_000_000, queue_count=2)
    codes, states, names = talk(application(folder, command=WAITS, bounds=bounds), story)
    assert codes == [202, 202, 429]
    assert states == ["queued", "queued", "running"]
    assert len(set(names)) == 3


def test_a_job_is_cancelled_wherever_it_stands(folder: Path, tmp_path: Path) -> None:
    """A plan started by mistake must not hold the queue for an hour, nor leave its process."""
    note = tmp_path / "pid"
    stubborn = (
        "import os,pathlib,signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"pathlib.Path({str(note)!r}).write_text(str(os.getpid())); time.sleep(600)"
    )

    async def story(client: httpx.AsyncClient) -> list[str]:
        for _ in range(2):
            await client.post("/api/runs", json=ORDER, headers=KEY)
        while not (note.exists() and note.read_text()):
            await asyncio.sleep(0.02)
        refused = await client.delete("/api/jobs/1")
        assert refused.status_code == 401
        assert (await client.delete("/api/jobs/9", headers=KEY)).status_code == 404
        for number in (2, 1):
            answer = await client.delete(f"/api/jobs/{number}", headers=KEY)
            assert answer.json()["status"] == "cancelled"
        again = await client.delete("/api/jobs/1", headers=KEY)
        assert again.json()["status"] == "cancelled"
        return [(await _over(client, number))["status"] for number in (1, 2)]  # type: ignore[misc]

    begin = time.monotonic()
    states = talk(application(folder, command=stubborn, bounds=BOUNDS), story)
    assert states == ["cancelled", "cancelled"]
    assert time.monotonic() - begin < 60
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


@pytest.mark.parametrize(
    ("code", "status", "text"),
    [
        ("import sys; sys.exit(70)", "failed", ""),
        ("import sys,pathlib; pathlib.Path(sys.argv[3]).mkdir(); sys.exit(1)", "unwanted", ""),
        ("import time; time.sleep(600)", "failed", "took longer than 0.5 s"),
        ("print('x' * 100_000)", "failed", ""),
    ],
)
def test_a_job_that_ends_badly_says_so(folder: Path, code: str, status: str, text: str) -> None:
    """A crash is not a plan, and the next job runs."""
    bounds = Bounds(requests_per_s=1e6, burst_count=1_000_000, job_s=0.5 if text else 60.0)

    async def story(client: httpx.AsyncClient) -> list[dict[str, object]]:
        for _ in range(2):
            await client.post("/api/runs", json=ORDER, headers=KEY)
        return [await _over(client, number) for number in (1, 2)]

    for job in talk(application(folder, command=code, bounds=bounds), story):
        assert job["status"] == status
        assert text in str(job["text"])


def test_a_command_that_is_not_there_fails_the_job(folder: Path) -> None:
    """The server stays when its Python went away."""
    app = application(folder, bounds=BOUNDS)
    app.state.web.jobs._command = lambda *_: ("/nonexistent/python",)

    async def story(client: httpx.AsyncClient) -> dict[str, object]:
        await client.post("/api/runs", json=ORDER, headers=KEY)
        return await _over(client, 1)

    assert talk(app, story)["status"] == "failed"


def test_the_form_works_without_scripts(folder: Path) -> None:
    """A browser without JavaScript starts and cancels, too."""

    async def story(client: httpx.AsyncClient) -> list[httpx.Response]:
        form = {**ORDER, "name": "", "token": TOKEN}
        started = await client.post("/plan", data=form)
        page = await client.get(started.headers["location"])
        wrong = await client.post("/plan", data={**form, "token": "nix"})
        unknown = await client.post("/plan", data={**form, "scheme": "nix"})
        refused = await client.post("/jobs/1/cancel", data={"token": "nix"})
        cancelled = await client.post("/jobs/1/cancel", data={"token": TOKEN})
        return [started, page, wrong, unknown, refused, cancelled]

    answers = talk(application(folder, command=WAITS, bounds=BOUNDS), story)
    assert [one.status_code for one in answers] == [303, 200, 401, 422, 401, 303]
    assert 'http-equiv="refresh"' in answers[1].text
    assert "is no scheme" in answers[3].text


def test_a_server_that_only_shows_starts_nothing(folder: Path) -> None:
    """A public screen offers no form."""
    app = create_app(folder)
    page, api, jobs = get(app, "/", "/api/scenarios", "/api/jobs")
    assert 'href="/plan"' not in page.text
    assert api.json()["can_start"] is False
    assert jobs.status_code == 403

    async def story(client: httpx.AsyncClient) -> int:
        return (await client.post("/api/runs", json=ORDER, headers=KEY)).status_code

    assert talk(app, story) == 403


def test_scenarios_of_runs_can_be_planned_again(folder: Path) -> None:
    """What would another scheme have done on that day?"""
    (found,) = get(application(folder), "/api/scenarios")
    known = {one["id"]: one["origin"] for one in found.json()["scenarios"]}
    assert known["six-bus"] == "bundled"
    assert known["june/central/scenario"] == "of a run"


def test_the_planning_process_writes_a_run_and_ends_with_its_server(folder: Path) -> None:
    """The real command, as `serve` starts it."""
    from veilgrid.cli._serve import _command

    app = application(folder, bounds=BOUNDS)
    app.state.web.jobs._command = _command

    async def story(client: httpx.AsyncClient) -> tuple[dict[str, object], httpx.Response]:
        order = {"scenario": "june/central/scenario", "scheme": "exchange", "name": "again"}
        await client.post("/api/runs", json=order, headers=KEY)
        for _ in range(3000):
            job = (await client.get("/api/jobs/1")).json()
            if job["status"] not in ("queued", "running"):
                break
            await asyncio.sleep(0.02)
        return job, await client.get("/api/runs/again")

    job, run = talk(app, story)
    assert (job["status"], job["run"]) == ("done", "again")
    assert run.json()["summary"]["status"] == "converged"
    assert job["iteration"] == run.json()["summary"]["iterations"]
    assert sys.executable == _command(folder, "central", folder)[0]
