"""The part of the benchmark ``ledger`` that asks the same of CometBFT [ledger 11.3]."""

import hashlib
import statistics
import threading
import time
from contextlib import ExitStack
from typing import Any, Final

import msgspec

from veilgrid.errors import RunAborted
from veilgrid.ledger.message import Configuration, Member, Notary, encode, signed_request
from veilgrid.ledger.workload import Load, operation_of
from veilgrid.node.cometbft.engine import Engine, Rpc
from veilgrid.secret import Secret
from veilgrid.signature import Signer

_AT_ONCE_S: Final = 0.002
_TIMEOUT_S: Final = 300.0


class _Client:
    """What ``workload.Asking`` is for our own replicas: so many requests under way at a time."""

    def __init__(self, name: str, signer: Signer, notary: Notary, rpc: Rpc) -> None:
        self._name, self._signer, self._notary, self._rpc = name, signer, notary, rpc
        self._number = 0

    def __enter__(self) -> "_Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._rpc.close()

    def transaction(self, operation_count: int) -> bytes:
        """Sign the next request."""
        self._number += 1
        operations = (operation_of(self._number),) * operation_count
        request = signed_request(self._notary, self._signer, self._name, self._number, operations)
        return encode(request)

    def one_by_one(self, count: int) -> list[float]:
        """Return the milliseconds that each of so many requests took."""
        times = []
        for number in range(1, count + 1):
            began = time.perf_counter()
            data = self._rpc.commit(self.transaction(1))
            times.append(1e3 * (time.perf_counter() - began))
            if data != encode((encode(number),)):
                raise RunAborted(f"request {number} has the result {data.hex()[:40]}")
        return times

    def load(self, load: Load) -> None:
        """Submit a load and wait until all of it is executed."""
        done, name, deadline = 0, self._name.encode(), time.monotonic() + _TIMEOUT_S
        while done < load.request_count:
            while self._number < load.request_count and self._number - done < load.at_once:
                self._rpc.submit(self.transaction(load.operation_count))
            done = msgspec.msgpack.decode(self._rpc.query("last", name))
            if time.monotonic() > deadline:
                raise RunAborted(f"CometBFT did not end the load within {_TIMEOUT_S:.0f} s")
            time.sleep(_AT_ONCE_S)


def _signer(name: str) -> Signer:
    return Signer(Secret(hashlib.sha256(b"bench " + name.encode()).digest()))


def _started(validators: int, clients: int) -> tuple[Engine, list[_Client]]:
    names = [f"validator-{k}" for k in range(1, validators + 1)]
    asking = [f"client-{k}" for k in range(1, clients + 1)]
    signers = {name: _signer(name) for name in (*names, *asking)}
    members = {name: Member(name, signer.verify_key) for name, signer in signers.items()}
    genesis = Configuration(0, tuple(members[n] for n in names), tuple(members[n] for n in asking))
    engine, notary = Engine(genesis), Notary(genesis.digest())
    try:
        engine.start()
    except BaseException:
        engine.close()
        raise
    own = [_Client(n, signers[n], notary, engine.client(k)) for k, n in enumerate(asking)]
    return engine, own


def cometbft_rows(requests: int, loads: list[list[Load]], validators: int) -> list[dict[str, Any]]:
    """Return one row for the median commit and one for each group of loads.

    Parameters
    ----------
    requests
        One operation each, one after the other.
    loads
        Of the clients of each further row, which ask different validators.
    validators
        3f + 1.
    """
    engine, (alone,) = _started(validators, 1)
    with engine, alone:
        times = alone.one_by_one(requests)
        version = engine.version
    rows = [
        {
            "value": statistics.median(times),
            "percentile_95": sorted(times)[int(0.95 * len(times))],
            "version": version,
        }
    ]
    for group in loads:
        engine, clients = _started(validators, len(group))
        with engine, ExitStack() as open_clients:
            for client in clients:
                open_clients.enter_context(client)
            began = time.perf_counter()
            _together(clients, group)
            seconds = time.perf_counter() - began
        total = sum(load.request_count * load.operation_count for load in group)
        rows.append({"value": total / seconds, "version": version})
    return rows


def _together(clients: list[_Client], loads: list[Load]) -> None:
    """Run all loads at once; the first fault ends the measurement."""
    faults: list[RunAborted | OSError] = []

    def run(client: _Client, load: Load) -> None:
        try:
            client.load(load)
        except (RunAborted, OSError) as fault:
            faults.append(fault)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(clients, loads, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise RunAborted(f"a load under CometBFT ended: {faults[0]}")
