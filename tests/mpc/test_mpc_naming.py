"""A part of the sweep of mpc_naming.py, and what it found."""

import pytest
from mpc_naming import campaign, cheap_signatures, party_of, played, trial

from veilgrid.machine import START, NodeId, Received, Send, TimerFired
from veilgrid.mpc.message import Finding, Passed, Said


def test_nobody_honest_is_named_and_somebody_corrupt_is() -> None:
    """A part of the campaign; docs/protocol/mpc.md 9.3 quotes the full one."""
    counts = campaign(200)
    assert sum(counts.values()) == 200
    assert sum(count for (_, kind), count in counts.items() if "cheated" in kind) > 60
    assert sum(count for (_, kind), count in counts.items() if "silent" in kind) > 10
    assert sum(count for (_, kind), count in counts.items() if kind == "right") > 30


FOUND = {
    2: "nobody was named where somebody claimed to have heard another transcript",
    128: "who told two parties different things made one look silent to the other",
}
"""Seeds that break a rule again if what mended them is taken out; see tests/mutations.md."""


@pytest.mark.parametrize("seed", FOUND)
def test_faults_once_found_stay_mended(seed: int) -> None:
    trial(seed)


def test_trials_replay() -> None:
    first, again = played(4711), played(4711)
    assert first.deviations == again.deviations
    assert first.outcomes == again.outcomes


def test_words_said_cannot_be_passed_off_as_findings() -> None:
    """Else anybody could make an honest party look two-faced with its own words and signature."""
    with cheap_signatures(1 << 16):
        case = played(4711).case
        one, two = (party_of(case, number, b"session", []) for number in (1, 2))
        words = next(
            effect.message
            for effect in one.handle(TimerFired(START))
            if isinstance(effect, Send) and isinstance(effect.message, Said)
        )
        two.handle(TimerFired(START))
        for step in (0, 1, 2, 99, -1):
            told = Finding(b"session", step, words.shared, words.signature)
            two.handle(Received(NodeId("p3"), Passed(b"session", 1, told)))
    assert two.state.doubles == set()
    assert not any(two.state.findings.values())
