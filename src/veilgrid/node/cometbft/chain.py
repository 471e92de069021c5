"""The ledger behind ABCI: requests and blocks in, the same service as a replica's [ledger 11.1].

A transaction is a signed :class:`~veilgrid.ledger.message.Request`. A block that has some is the
next sequence; one without changes nothing, so that CometBFT does not make blocks for ever.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec

from veilgrid.ledger.message import (
    BATCH_LENGTH_MAX,
    BATCH_REQUEST_COUNT_MAX,
    CLIENT_WINDOW,
    Batch,
    Configuration,
    Notary,
    Request,
    Verify,
    digest_of,
    encode,
    is_bounded,
    keys_of,
)
from veilgrid.ledger.service import SYSTEM, Application, Service
from veilgrid.node.cometbft import abci
from veilgrid.signature import verify as verify_ed25519

ACCEPT: Final = 1
REJECT: Final = 2
OK: Final = 0
NOT_NEXT: Final = 1
MALFORMED: Final = 2
_CHECKED_MAX: Final = 4096
_INTERVAL: Final = 64

_request = msgspec.msgpack.Decoder(Request).decode


def chain_id_of(genesis: Configuration) -> str:
    """Return what CometBFT's votes name the ledger by: 41 of at most 50 characters."""
    return f"veilgrid-{genesis.digest().hex()[:32]}"


class Chain:
    """One validator's application under CometBFT.

    Parameters
    ----------
    genesis
        Whose keys sign requests; its digest names the ledger.
    application
        What is replicated: the same as under :class:`~veilgrid.ledger.replica.Replica`.
    verify
        ed25519; a test may pass something cheaper.
    """

    def __init__(
        self,
        genesis: Configuration,
        application: Application,
        verify: Verify = verify_ed25519,
    ) -> None:
        self.genesis = genesis
        self._application = application
        self._notary = Notary(genesis.digest(), verify)
        self._keys = {**keys_of(genesis.clients), **keys_of(genesis.replicas)}
        self.service = Service(application, genesis, _INTERVAL, 2 * _INTERVAL)
        self.height = 0
        self._app_hash = self._hashed()
        self._committed = (0, self._app_hash)
        self._last: tuple[int, bytes, Any] | None = None
        self._checked: dict[bytes, Request] = {}
        self._answers: dict[str, Callable[[Any], Any]] = {
            "echo": lambda asked: abci.response("echo", message=asked.message),
            "flush": lambda _: abci.response("flush"),
            "info": self._info,
            "init_chain": self._init_chain,
            "query": self._query,
            "check_tx": self._check,
            "commit": self._commit,
            "prepare_proposal": self._prepare_proposal,
            "process_proposal": self._process_proposal,
            "finalize_block": self._finalize,
            "extend_vote": lambda _: abci.response("extend_vote"),
            "verify_vote_extension": lambda _: abci.response(
                "verify_vote_extension", status=ACCEPT
            ),
            "list_snapshots": lambda _: abci.response("list_snapshots"),
            "offer_snapshot": lambda _: abci.response("offer_snapshot", result=REJECT + 1),
            "load_snapshot_chunk": lambda _: abci.response("load_snapshot_chunk"),
            "apply_snapshot_chunk": lambda _: abci.response("apply_snapshot_chunk", result=2),
        }

    def handle(self, message: Any) -> Any:
        """Answer one request of CometBFT."""
        kind = abci.kind_of(message)
        answer = self._answers.get(kind)
        if answer is None:
            return abci.response("exception", error="a request of an unknown kind")
        return answer(getattr(message, kind))

    def _hashed(self) -> bytes:
        """Return what CometBFT's block headers certify: a digest of the checkpoint summary."""
        summary = self.service.summary(self.service.moment())
        return digest_of("cometbft", encode(summary))

    # -- requests --------------------------------------------------------------------------------

    def _read(self, octets: bytes) -> Request | None:
        """Return the request that these octets are, if its client signed it."""
        name = hashlib.sha256(octets).digest()
        if name in self._checked:
            return self._checked[name]
        try:
            request = _request(octets)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if not is_bounded(request) or any(o.startswith(SYSTEM) for o in request.operations):
            return None  # CometBFT's own validators change otherwise [ledger 11.4].
        if not self._notary.check(
            self._keys.get(request.client),
            "request",
            request.signature,
            request.client,
            request.number,
            request.operations,
        ):
            return None
        if len(self._checked) >= _CHECKED_MAX:
            del self._checked[next(iter(self._checked))]
        self._checked[name] = request
        return request

    def _check(self, asked: Any) -> Any:
        request = self._read(asked.tx)
        if request is None:
            log = "not a request that a client has signed"
            return abci.response("check_tx", code=MALFORMED, log=log)
        last = self.service.last(request.client)
        if not last < request.number <= last + CLIENT_WINDOW:
            log = f"request {request.number} of {request.client} after {last}"
            return abci.response("check_tx", code=NOT_NEXT, log=log)
        return abci.response("check_tx", code=OK)

    # -- blocks ----------------------------------------------------------------------------------

    def _prepare_proposal(self, asked: Any) -> Any:
        """Choose what to propose: requests in each client's order, within the bounds."""
        found = [(tx, self._read(tx)) for tx in asked.txs]
        waiting = sorted(
            ((tx, request) for tx, request in found if request is not None),
            key=lambda pair: pair[1].number,
        )
        numbers: dict[str, int] = {}
        chosen: list[bytes] = []
        size = length = 0
        for tx, request in waiting:
            last = numbers.get(request.client, self.service.last(request.client))
            own = sum(map(len, request.operations))
            is_full = size + len(tx) + 16 > asked.max_tx_bytes or length + own > BATCH_LENGTH_MAX
            if request.number != last + 1 or is_full or len(chosen) == BATCH_REQUEST_COUNT_MAX:
                continue
            numbers[request.client] = request.number
            size, length = size + len(tx) + 16, length + own
            chosen.append(tx)
        return abci.response("prepare_proposal", txs=chosen)

    def _process_proposal(self, asked: Any) -> Any:
        """Vote for a block only if it holds signed requests, and no more than a batch may."""
        requests = [self._read(tx) for tx in asked.txs]
        known = [request for request in requests if request is not None]
        length = sum(len(o) for request in known for o in request.operations)
        is_sound = (
            len(known) == len(requests) <= BATCH_REQUEST_COUNT_MAX and length <= BATCH_LENGTH_MAX
        )
        return abci.response("process_proposal", status=ACCEPT if is_sound else REJECT)

    def _finalize(self, asked: Any) -> Any:
        """Execute a decided block; asked again for the same one, answer the same."""
        octets = list(asked.txs)
        name = digest_of("cometbft block", encode(octets))
        if self._last is not None and self._last[:2] == (asked.height, name):
            return self._last[2]
        if asked.height != self.height + 1:
            error = f"block {asked.height} after {self.height}: the application is elsewhere"
            return abci.response("exception", error=error)
        requests = [self._read(tx) for tx in octets]
        done = self._executed([request for request in requests if request is not None])
        self.height = asked.height
        self._app_hash = self._hashed()
        answer = abci.response(
            "finalize_block",
            tx_results=[self._result(request, done) for request in requests],
            app_hash=self._app_hash,
        )
        self._last = (self.height, name, answer)
        return answer

    def _executed(self, requests: Sequence[Request]) -> set[tuple[str, int]]:
        if not requests:
            return set()
        done, _ = self.service.execute(self.service.sequence + 1, Batch(tuple(requests)))
        return _names(done)

    def _result(self, request: Request | None, done: set[tuple[str, int]]) -> dict[str, Any]:
        if request is None:
            return {"code": MALFORMED, "log": "not a request that a client has signed"}
        if (request.client, request.number) not in done:
            return {"code": NOT_NEXT, "log": "not the next request of its client"}
        results = self.service.cached(request.client, request.number)
        return {"code": OK, "data": encode(results)}

    def _commit(self, _asked: Any) -> Any:
        self._committed = (self.height, self._app_hash)
        return abci.response("commit")

    # -- the rest --------------------------------------------------------------------------------

    def _info(self, _asked: Any) -> Any:
        """Say up to where blocks are executed; CometBFT replays the rest from its own store."""
        height, app_hash = self._committed
        return abci.response(
            "info", data="veilgrid", last_block_height=height, last_block_app_hash=app_hash
        )

    def _init_chain(self, asked: Any) -> Any:
        expected = chain_id_of(self.genesis)
        if asked.chain_id != expected:
            error = f"chain {asked.chain_id}, this application is of {expected}"
            return abci.response("exception", error=error)
        return abci.response("init_chain", app_hash=self._app_hash)

    def _query(self, asked: Any) -> Any:
        """Answer a question of a client, who believes what f + 1 validators say alike."""
        value: Any = None
        match asked.path:
            case "last":
                value = self.service.last(bytes(asked.data).decode(errors="replace"))
            case "summary":
                value = self.service.summary(self.service.moment())
            case "reply":
                value = self._reply(asked.data)
        if value is None:
            return abci.response("query", code=MALFORMED, log="nothing is known of this")
        return abci.response("query", code=OK, value=encode(value), height=self.height)

    def _reply(self, octets: bytes) -> tuple[bytes, ...] | None:
        try:
            client, number = msgspec.msgpack.decode(octets, type=tuple[str, int])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        return self.service.cached(client, number)


def _names(requests: Iterable[Request]) -> set[tuple[str, int]]:
    return {(request.client, request.number) for request in requests}
