"""Live events: nothing is lost on reconnection, nothing comes through that was not meant to."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from web_client import application, get, talk

from veilgrid.errors import InputError
from veilgrid.secret import Secret
from veilgrid.web.feed import SOURCES_MAX, Event, Feed, follow
from veilgrid.web.guard import Bounds


def _data(text: str) -> list[dict[str, object]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]


async def _next(stream: AsyncIterator[bytes]) -> bytes:
    return await asyncio.wait_for(anext(stream), 10)


def test_events_come_in_order_and_a_reader_continues_where_it_was(folder: Path) -> None:
    """A laptop that slept must not miss the end of a run."""
    feed = Feed()
    for number in range(1, 7):
        feed.publish(Event(kind="iteration", source="day", iteration=number))
    app = application(folder, feed=feed)
    whole, after = get(app, "/api/events?limit=6", "/api/events?after=2&limit=2")
    (again,) = get(app, "/api/events?limit=3", headers={"last-event-id": "3"})
    assert [one["iteration"] for one in _data(whole.text)] == [1, 2, 3, 4, 5, 6]
    assert [one["iteration"] for one in _data(after.text)] == [3, 4]
    assert [one["iteration"] for one in _data(again.text)] == [4, 5, 6]
    assert whole.headers["content-type"].startswith("text/event-stream")
    assert "id: 6\nevent: veilgrid\n" in whole.text


def test_wrong_places_in_the_stream_are_findings(folder: Path) -> None:
    """A typing error is not silence."""
    app = application(folder)
    for query in ("after=x", "after=-1", "limit=1.5", "after=²", "limit=" + "9" * 30):
        (answer,) = get(app, f"/api/events?{query}")
        assert answer.status_code == 422, query


@pytest.mark.parametrize(
    "event",
    [
        {"kind": "note", "share": 12345},
        {"kind": "note", "text": Secret("bid")},
        {"kind": "iteration", "iteration": "three"},
        {"kind": ""},
        {"source": "x"},
        {"kind": "note", 5: "x"},
    ],
)
def test_what_is_no_event_is_refused_without_its_values(event: dict[str, object]) -> None:
    """A share that somebody adds to an event must not reach a screen."""
    feed = Feed()
    with pytest.raises(InputError) as caught:
        feed.publish(event)
    assert "12345" not in str(caught.value)
    assert "bid" not in str(caught.value)
    assert feed.live().recent == []


def test_a_feed_forgets_the_oldest_and_is_bounded_in_sources() -> None:
    """A deployment runs for months."""
    feed = Feed(keep_count=3)
    for number in range(SOURCES_MAX + 5):
        feed.publish(Event(kind="process", source=f"p{number}", text="x" * 9000))
    live = feed.live()
    assert [one.number for one in live.recent] == [
        SOURCES_MAX + 5,
        SOURCES_MAX + 4,
        SOURCES_MAX + 3,
    ]
    assert len(live.latest) == SOURCES_MAX
    assert len(live.recent[0].event.text) == 500
    assert [one.number for one in feed.since(0)] == [
        SOURCES_MAX + 3,
        SOURCES_MAX + 4,
        SOURCES_MAX + 5,
    ]


def test_a_waiting_reader_is_woken_by_another_thread_and_by_the_end() -> None:
    """Runners publish from their own threads."""
    feed = Feed()

    async def story() -> list[bytes]:
        stream = feed.stream(0, heartbeat_s=60)
        got = [await _next(stream)]
        later = asyncio.get_running_loop().create_task(_next(stream))
        await asyncio.sleep(0)
        thread = threading.Thread(target=feed.publish, args=(Event(kind="note", text="hello"),))
        thread.start()
        got.append(await later)
        thread.join()
        last = asyncio.get_running_loop().create_task(_next(stream))
        await asyncio.sleep(0)
        feed.close()
        with pytest.raises(StopAsyncIteration):
            await last
        return got

    first, second = asyncio.run(story())
    assert first.startswith(b"retry:")
    assert b'"hello"' in second
    assert feed._waiting == set()


def test_a_silent_stream_says_that_it_is_there() -> None:
    """Proxies cut connections on which nothing happens."""

    async def story() -> bytes:
        stream = Feed().stream(0, heartbeat_s=0.01)
        await _next(stream)
        beat = await _next(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        return beat

    assert asyncio.run(story()).startswith(b":")


def test_streams_are_counted_and_bounded(folder: Path) -> None:
    """Forgotten tabs must not use up the server."""
    app = application(folder, bounds=Bounds(stream_count=0))
    (answer,) = get(app, "/api/events?limit=1")
    assert answer.status_code == 503
    app = application(folder)
    app.state.web.feed.publish(Event(kind="note"))
    get(app, "/api/events?limit=1")
    assert get(app, "/api/health")[0].json()["streams"] == 0


def test_a_file_of_events_is_followed(tmp_path: Path) -> None:
    """`veilgrid up` may write from another process; its file may be broken or begin anew."""
    path, feed = tmp_path / "events.jsonl", Feed()

    async def until(count: int) -> None:
        for _ in range(500):
            if len(feed.since(0)) >= count:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{len(feed.since(0))} events, expected {count}")

    async def story() -> None:
        task = asyncio.create_task(follow(path, feed, interval_s=0.01))
        await asyncio.sleep(0.03)
        path.write_bytes(b'{"kind":"note","text":"one"}\n{"kind":"no')
        await until(1)
        with path.open("ab") as file:
            file.write(b'te","text":"two"}\n\n{"kind":"note","share":"canary"}\nnot json\xff\n')
            file.write(b'{"kind":"note","text":"' + b"x" * 100_000 + b'"}\n[1]\n')
            file.write(b'{"kind":"note","text":"three"}\n')
        await until(7)
        path.write_bytes(b'{"kind":"note","text":"anew"}\n')
        await until(8)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())
    texts = [one.event.text for one in feed.since(0)]
    assert texts[:2] == ["one", "two"]
    assert texts[2:6] == [f"line {number} is no event" for number in (4, 5, 6, 7)]
    assert texts[6:] == ["three", "anew"]


def test_the_live_page_shows_what_the_feed_knows(folder: Path) -> None:
    """Without JavaScript the page is a snapshot."""
    feed = Feed()
    feed.publish(Event(kind="process", source="party-1", status="starting"))
    feed.publish(Event(kind="process", source="party-1", status="ready<b>"))
    feed.publish(Event(kind="iteration", source="day", iteration=4, primal=float("inf"), cost=2.5))

    async def story(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.get("/live"), await client.get("/api/live")]

    page, api = talk(application(folder, feed=feed), story)
    latest = [(one["event"]["source"], one["event"]["status"]) for one in api.json()["latest"]]
    assert latest == [("day", ""), ("party-1", "ready<b>")]
    assert api.json()["latest"][0]["event"]["primal"] is None
    assert "ready&lt;b&gt;" in page.text
    assert 'data-after="3"' in page.text
