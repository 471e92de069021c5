"""Four validators of CometBFT with our application each, and SIGKILL; where CometBFT is there."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cometbft_day import DAY, GENESIS, SIGNERS, coordination_of, course

from veilgrid.errors import RunAborted, SetupError
from veilgrid.ledger.message import Batch, Notary, Request, encode, signed_request
from veilgrid.ledger.operation import Done, Refused, decode_result
from veilgrid.ledger.service import Service
from veilgrid.node.cometbft import engine as module
from veilgrid.node.cometbft.engine import HOW, Engine, configured, find_engine

NEEDS = pytest.mark.skipif(find_engine() is None, reason=f"CometBFT is not installed: {HOW}")
NOTARY = Notary(GENESIS.digest())


def requests() -> list[Request]:
    """Return the day's operations as signed requests, each client's numbered from 1."""
    numbers: dict[str, int] = {}
    signed = []
    for client, operation in course():
        numbers[client] = numbers.get(client, 0) + 1
        own = (NOTARY, SIGNERS[client], client, numbers[client], (encode(operation),))
        signed.append(signed_request(*own))
    return signed


@NEEDS
@pytest.mark.slow
def test_a_day_ends_the_same_with_a_validator_killed_on_the_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same application on both: a service fed by hand agrees with four under the engine."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    day, own = requests(), Service(coordination_of(GENESIS), GENESIS, 64, 128)
    with Engine(GENESIS, application="cometbft_day:coordination_of") as engine:
        engine.start()
        for number, one in enumerate(day):
            if number == 5:
                engine.kill(3)
            if number == 12:
                engine.revive(3)
            with engine.client(number % 3) as client:
                data = client.commit(encode(one))
            own.execute(own.sequence + 1, Batch((one,)))
            results = own.cached(one.client, one.number)
            assert results is not None
            assert data == encode(results), "what the engine's validators found is what we find"
        summary = encode(own.summary(own.moment()))
        for index in range(4):
            engine.wait_for(index, "summary", summary)
    results_ = [decode_result(own.cached(one.client, one.number)[0]) for one in day]  # type: ignore[index]
    assert isinstance(results_[3], Refused)
    assert results_[-1] == Done()
    assert own.state.closed[DAY]


@NEEDS
def test_what_the_engine_refuses_is_said() -> None:
    """A request under a foreign key never reaches a block."""
    foreign = signed_request(NOTARY, SIGNERS["site:a"], "operator", 1, (b"x",))
    with Engine(GENESIS) as engine:
        engine.start()
        with engine.client() as client, pytest.raises(RunAborted, match="signed"):
            client.commit(encode(foreign))


def test_without_the_engine_the_reason_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for it is told how to get it."""
    monkeypatch.setattr(module, "find_engine", lambda: None)
    with pytest.raises(SetupError, match="make cometbft"):
        Engine(GENESIS)


def test_settings_are_replaced_where_they_stand_and_missing_ones_are_named() -> None:
    """A key that another version does not know would be lost silently."""
    text = 'a = 1\n[p2p]\na = 2\nb = "x"\n[rpc]\na = 3\n'
    told = configured(text, {"p2p": {"a": "9"}, "": {"a": "8"}})
    assert told == 'a = 8\n[p2p]\na = 9\nb = "x"\n[rpc]\na = 3\n'
    with pytest.raises(SetupError, match=r"rpc\.c"):
        configured(text, {"rpc": {"c": "1"}})
