"""A site that keeps a day from ending by its wishes is found out by proofs drawn at random."""

from typing import ClassVar

import msgspec
import pytest

from veilgrid.grid.lindistflow import Limits
from veilgrid.roles.sealed import course, program
from veilgrid.roles.sealed import day as sealed_day
from veilgrid.roles.sealed.attack import play_lie
from veilgrid.roles.sealed.message import Notice
from veilgrid.secret import SeededRandomness

from .sealed_days import Change, LiarGroup, run_day, small
from .test_sealed_liars import LIAR, Pretender

STRANGE = "its wish is not what its bid makes of its prices"
TIGHT = small(2, rating=0.55, low=0.97)
PLAIN = small(2)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watch from early on, and ask for every second wish."""
    monkeypatch.setattr(course, "STALLED_FROM", 3)
    monkeypatch.setattr(program, "CHALLENGED_OF", 2)


def test_truthful_wishes_pass_the_day_still_ends_and_nothing_opens_but_who_failed() -> None:
    """With reactive power, a battery, linear and quadratic costs; nobody may be blamed."""
    ended = run_day(TIGHT.day(), Limits.of(TIGHT.network))
    assert ended.public["status"] == "converged"
    assert ended.excluded == {}
    notices = [message for _, _, message in ended.sent if isinstance(message, Notice)]
    results = [msgspec.msgpack.decode(notice.result) for notice in notices]
    asked = [result for result in results if "strange" in result]
    assert asked
    assert all(result == {"strange": []} for result in asked)


def test_a_site_that_lies_in_its_wishes_is_named() -> None:
    """Its answers are true, so no claim differs from its proof: only the wish itself tells."""
    limits = Limits.of(PLAIN.network)
    ended = play_lie(PLAIN.day(), limits, SeededRandomness(3), LIAR, "wish")
    assert ended.coordination is not None
    assert ended.coordination.status == "converged"
    assert ended.excluded == {LIAR: STRANGE}


class Pusher(LiarGroup):
    """Its wishes move by less than they should; all else that it says follows from them."""

    lies: ClassVar[dict[int, Change]] = {}

    def _measure(self) -> None:
        super()._measure()
        if LIAR in self._mine.own:
            self._mine.step[0, self._mine.own.index(LIAR)] -= 2.0**-4


def test_a_site_whose_wishes_move_as_it_likes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers are the cheapest near its wishes: that these do not follow is all that tells."""
    monkeypatch.setattr(sealed_day, "SiteGroup", Pusher)
    ended = run_day(PLAIN.day(), Limits.of(PLAIN.network))
    assert ended.excluded == {LIAR: STRANGE}


def test_wishes_for_devices_that_were_not_bid_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It moves as an answer of its own would, but of another site than it committed to."""
    monkeypatch.setattr(sealed_day, "SiteGroup", Pretender)
    monkeypatch.setattr(Pretender, "lies", {}, raising=False)
    scenario = PLAIN
    ended = run_day(scenario.day(), Limits.of(scenario.network))
    assert ended.excluded == {LIAR: STRANGE}
