"""What the pages and the JSON routes show, and what they must not show."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from web_client import TOKEN, application, findings, get, raw_get, talk

from veilgrid.report.results import RunRecord
from veilgrid.web.app import create_app
from veilgrid.web.guard import POLICY, Bounds

CANARY = "canary-c0ffee-4b1d"


class _Page(HTMLParser):
    """Everything in a page that could load, lead or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.inline: list[str] = []
        self.labels: set[str] = set()
        self.inputs: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.links += [value for key, value in attrs if key in ("href", "action") and value]
        self.loads += [found["src"] or ""] if "src" in found else []
        self.loads += [found["href"] or ""] if tag == "link" else []
        if tag == "script" and "src" not in found and found.get("type") != "application/json":
            self.inline.append(self.get_starttag_text() or "")
        self.inline += [key for key in found if key.startswith("on")]
        if tag == "label":
            self.labels.add(found.get("for") or "")
        if tag in ("input", "select"):
            self.inputs.append(found)


def _crawl(app: object, start: str = "/") -> dict[str, httpx.Response]:
    """Fetch every address that pages lead to."""
    seen: dict[str, httpx.Response] = {}

    async def story(client: httpx.AsyncClient) -> None:
        waiting = [start, "/live", "/plan", "/api/health", "/api/version", "/api/jobs"]
        waiting.append("/compare?run=june/central&run=june/alone")
        while waiting:
            path = waiting.pop()
            if path in seen:
                continue
            if path.startswith("/api/events"):
                continue
            answer = seen[path] = await client.get(path)
            if "html" in answer.headers["content-type"] and not path.startswith("/report/"):
                page = _Page(answer.text)
                found = [*page.links, *page.loads]
                waiting += [link for link in found if link.startswith("/")]

    talk(app, story)  # type: ignore[arg-type]
    return seen


def test_everything_that_a_page_leads_to_is_there(folder: Path) -> None:
    """A dead link in a dashboard is a feature that nobody tried."""
    seen = _crawl(application(folder))
    assert len(seen) > 25
    wrong = {path: one.status_code for path, one in seen.items() if one.status_code != 200}
    assert wrong == {"/compare": 422}  # the form's target without a choice


def test_pages_load_nothing_from_elsewhere_and_run_nothing_inline(folder: Path) -> None:
    """Who watches a grid does so on networks without internet; a policy that allows inline
    scripts does not protect from names with tags in them."""
    for path, answer in _crawl(application(folder)).items():
        if "html" not in answer.headers["content-type"] or path.startswith("/report/"):
            continue
        page = _Page(answer.text)
        assert page.inline == [], path
        hosts = {urlsplit(link).netloc for link in (*page.links, *page.loads)}
        assert hosts == {""}, path
        assert answer.headers["content-security-policy"] == POLICY, path
        wanted = {one.get("id") for one in page.inputs if one.get("type") != "checkbox"}
        assert wanted - {"interval"} - {None} <= page.labels, path


def test_a_run_is_shown_as_it_was_written(
    folder: Path, six_bus_records: dict[str, RunRecord]
) -> None:
    """The dashboard adds nothing to a result and loses nothing of it."""
    record = six_bus_records["central"]
    one, full, page = get(
        application(folder),
        "/api/runs/june/central",
        "/api/runs/june/central?figures=yes",
        "/runs/june/central",
    )
    assert one.json()["summary"] == record.summary
    rows = {row["site"]: row["payment"] for row in one.json()["settlement"]}
    written = {row["site"]: row["payment"] for row in record.summary["settlement"]["sites"]}
    assert rows == pytest.approx(written)
    assert all(picture["figure"] is None for picture in one.json()["pictures"])
    names = [picture["name"] for picture in full.json()["pictures"]]
    assert "feeder" in names
    for picture in full.json()["pictures"]:
        assert picture["figure"]["data"]
        assert f'data-figure="{picture["name"]}"' in page.text
    for card in (*one.json()["facts"], *one.json()["verdicts"], *one.json()["checks"]):
        assert card["value"].replace("'", "&#39;") in page.text
    assert one.json()["exposed"].split(":")[0] in page.text


def test_pages_render_what_their_json_says(folder: Path) -> None:
    """Two sources of truth drift apart."""
    app = application(folder)
    listed, page = get(app, "/api/runs", "/")
    assert {run["id"] for run in listed.json()["runs"]} == {"june/central", "june/alone"}
    for run in listed.json()["runs"]:
        assert f'href="/runs/{run["id"]}"' in page.text
        assert f"{run['cost']:,.2f}" in page.text
    compared, page = get(
        app,
        "/api/compare?run=june/central&run=june/alone",
        "/compare?run=june/central&run=june/alone",
    )
    rows = {row["run"]: row for row in compared.json()["rows"]}
    assert rows["june/central"]["gap"] == 0.0
    assert rows["june/alone"]["gap"] > 0.0
    assert f"{rows['june/alone']['gap']:,.2f} %" in page.text
    fleet, page = get(app, "/api/rounds/fleet", "/rounds/fleet")
    assert fleet.json()["result"]["certified_kw"] == 24.0
    assert "25.0 kW can be relied on with 99 %" in page.text
    assert "&lt;b&gt;usual&lt;/b&gt;" in page.text
    assert "<b>usual</b>" not in page.text


def test_a_damaged_run_is_named_and_the_others_are_shown(folder: Path) -> None:
    """One bad folder must not hide a year of good ones, nor be shown as if it were good."""
    (folder / "june" / "alone" / "buses.parquet").write_bytes(b"")
    (folder / "june" / "central" / "run.json").write_text("{")
    listed, page, damaged = get(application(folder), "/api/runs", "/", "/api/runs/june/alone")
    problems = {run["id"]: run["problem"] for run in listed.json()["runs"]}
    assert problems["june/central"]
    assert not problems["june/alone"]
    assert page.status_code == 200
    assert damaged.status_code == 422
    assert "june/alone/buses.parquet" in findings(damaged)[0]["where"]
    assert str(folder) not in damaged.text


@pytest.mark.parametrize(
    "path",
    [
        "/api/runs/../../etc/passwd",
        "/api/runs/%2e%2e/%2e%2e/etc/passwd",
        "/api/runs/..%2f..%2fetc%2fpasswd",
        "/api/runs//etc/passwd",
        "/api/runs/june/central/../../../outside",
        "/api/runs/june/central/scenario",
        "/api/runs/june\\central",
        "/api/runs/june/central%00",
        "/api/runs/linked",
        "/api/runs/.hidden",
        "/api/rounds/linked",
        "/report/linked",
        "/report/.hidden",
        "/report/..",
        "/report/fleet/report.html",
        "/api/tables/../june/central",
        "/api/tables/run.json/june/central",
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/frame.html.j2",
    ],
)
def test_no_path_leads_out_of_the_folder(
    folder: Path, six_bus_records: dict[str, RunRecord], path: str
) -> None:
    """Whoever can read the dashboard must not read the machine."""
    from veilgrid.report.results import write_run

    outside = folder.parent / "outside"
    write_run(outside, six_bus_records["central"])
    (folder / "linked").symlink_to(outside)
    write_run(folder / ".hidden", six_bus_records["central"])

    status, body = raw_get(application(folder), path)
    assert status == 404
    assert b"converged" not in body
    assert raw_get(application(folder), "/api/runs/june/central")[0] == 200


def test_no_secret_is_in_any_answer(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Deployments keep keys below the folder that holds their results."""
    keys = folder / "keys"
    keys.mkdir()
    for file in (keys / "party-1.key", folder / ".token", folder / "june" / "central" / "note.pem"):
        file.write_text(CANARY)
    (keys / "settings.toml").write_text(f'secret = "{CANARY}"')
    (folder / "stray.json").write_text(json.dumps({"key": CANARY}))
    app = application(folder)

    async def wrong(client: httpx.AsyncClient) -> list[httpx.Response]:
        shown = {"authorization": f"Bearer {TOKEN}"}
        started = await client.post("/api/runs", json={"scenario": "six-bus"}, headers=shown)
        return [
            started,
            await client.post("/api/runs", json={"scenario": "six-bus"}),
            await client.post("/plan", data={"scenario": "nix", "token": TOKEN}),
            await client.get("/api/jobs"),
            await client.get("/live"),
        ]

    answers = [*talk(app, wrong), *_crawl(app).values()]
    assert len(answers) > 25
    for answer in answers:
        told = answer.text + str(answer.headers)
        assert CANARY not in told
        assert TOKEN not in told
    printed = capfd.readouterr()
    assert TOKEN not in printed.out + printed.err
    assert TOKEN not in repr(app.state.web)


def test_reports_from_the_folder_run_in_a_sandbox(folder: Path) -> None:
    """A report that somebody sent must not act as the dashboard."""
    (folder / "fleet" / "report.html").write_text("<script>fetch('/api/runs')</script>")
    (answer,) = get(application(folder), "/report/fleet")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts; default-src 'none'")
    assert "allow-same-origin" not in policy


def test_names_with_tags_stay_text(folder: Path) -> None:
    """A folder or a scheme may be called anything."""
    evil = folder / "<img src=x onerror=alert(1)>"
    (folder / "fleet").rename(evil)
    summary = folder / "june" / "central" / "run.json"
    known = json.loads(summary.read_text())
    summary.write_text(json.dumps({**known, "scheme": "<script>alert(1)</script>"}))
    (page,) = get(application(folder), "/")
    assert "<img" not in page.text
    assert "<script>alert" not in page.text
    assert "&lt;img src=x" in page.text


def test_a_server_for_other_machines_asks_for_the_token_to_read(folder: Path) -> None:
    """On an open address results are not public."""
    from veilgrid.secret import Secret
    from veilgrid.web.guard import Token

    app = create_app(folder, hosts=["127.0.0.1"], reader=Token(Secret(TOKEN)))
    none, wrong, health = (
        get(app, "/api/runs")[0],
        get(app, "/", headers={"authorization": "Bearer nix"})[0],
        get(app, "/api/health")[0],
    )
    assert (none.status_code, wrong.status_code, health.status_code) == (401, 401, 200)
    assert get(app, "/", headers={"authorization": f"Bearer {TOKEN}"})[0].status_code == 200
    assert get(app, "/", auth=("anybody", TOKEN))[0].status_code == 200
    assert get(app, "/", headers={"authorization": "Basic %%%"})[0].status_code == 401


def test_another_host_name_is_refused(folder: Path) -> None:
    """A page whose name was made to lead to this machine must not read it."""
    app = application(folder)
    for host in ("evil.example", "127.0.0.1.evil.example", "", "127.0.0.1@evil"):
        (answer,) = get(app, "/", headers={"host": host})
        assert answer.status_code == 421, host
    for host in ("localhost:8383", "[::1]:8383", "LOCALHOST"):
        assert get(app, "/", headers={"host": host})[0].status_code == 200, host


def test_too_many_too_large_and_too_long_are_refused(folder: Path) -> None:
    """One careless script must not stop the dashboard for everybody."""
    bounds = Bounds(requests_per_s=0.001, burst_count=5, body_octets=100, path_octets=200)
    (long,) = get(application(folder, bounds=bounds), "/api/runs/" + "a" * 300)
    assert long.status_code == 414
    answers = get(application(folder, bounds=bounds), *["/api/health"] * 7)
    assert [one.status_code for one in answers] == [200] * 5 + [429] * 2
    assert answers[-1].headers["retry-after"] == "1"

    async def story(client: httpx.AsyncClient) -> list[int]:
        async def pieces():  # type: ignore[no-untyped-def]
            for _ in range(20):
                yield b"x" * 10

        headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
        told = await client.post("/api/runs", content=b"x" * 101, headers=headers)
        counted = await client.post("/api/runs", content=pieces(), headers=headers)
        return [told.status_code, counted.status_code]

    assert talk(application(folder, bounds=bounds), story) == [413, 413]


def test_what_an_address_may_ask_grows_back() -> None:
    """A limit that never ends is an outage."""
    from veilgrid.web.guard import Guard

    now = 0.0
    guard = Guard(lambda *_: None, Bounds(requests_per_s=2.0, burst_count=3), [], None, lambda: now)  # type: ignore[arg-type,return-value]
    assert [guard._has_room("a") for _ in range(4)] == [True, True, True, False]
    assert guard._has_room("b")
    now = 0.5
    assert [guard._has_room("a") for _ in range(2)] == [True, False]


def test_unknown_routes_and_methods_answer_in_the_asked_form(folder: Path) -> None:
    """Scripts get JSON, people get a page."""
    app = application(folder)
    api, page, method = get(app, "/api/nothing", "/nothing", "/jobs/1/cancel")
    assert (api.status_code, page.status_code, method.status_code) == (404, 404, 405)
    assert findings(api)
    assert re.search(r"<h1>", page.text)


def test_a_bug_names_its_kind_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text of an unexpected error may hold anything."""
    app = application(folder)

    def broken() -> None:
        raise RuntimeError(CANARY)

    monkeypatch.setattr(app.state.web.shelf, "overview", broken)
    (answer,) = get(app, "/api/runs")
    assert answer.status_code == 500
    assert "RuntimeError" in answer.text
    assert CANARY not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_an_aggregate_without_a_memory_is_written_and_shown(tmp_path: Path) -> None:
    """The first thing that anybody aggregates has no history yet."""
    from veilgrid.cli import main

    readings = tmp_path / "readings.csv"
    rows = [f"s{number},{40 + number % 3},household,0,100" for number in range(6)]
    readings.write_text("\n".join(["source,value,tier,lower,upper", *rows]) + "\n")
    with pytest.raises(SystemExit) as ended:
        main(["aggregate", str(readings), "--function", "mean", "--out", str(tmp_path / "mean")])
    assert ended.value.code == 0
    page, api = get(application(tmp_path), "/rounds/mean", "/api/rounds/mean")
    assert api.json()["result"]["value"] == pytest.approx(41.0)
    assert api.json()["title"] == "mean: 41"
    assert "<h1>mean: 41</h1>" in page.text
    assert 'sandbox="allow-scripts"' in page.text
