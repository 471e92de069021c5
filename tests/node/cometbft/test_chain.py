"""The same application on both engines: what a chain executes, refuses and repeats."""

from typing import Any

import pytest
from cometbft_ledger import CLIENTS, GENESIS, NOTARY, SIGNERS, request, transaction
from ledger_runs import ledger_world
from ledger_world import GENESIS as POOL
from ledger_world import REPLICAS, Register, cheap_verify

from veilgrid.ledger.journalled import Accepted, Committed, Installed
from veilgrid.ledger.message import NOTHING_DIGEST, Batch, encode, signed_request
from veilgrid.ledger.service import CHECKPOINT_OPERATION, Service, configure_operation
from veilgrid.ledger.workload import Tally
from veilgrid.node.cometbft import abci
from veilgrid.node.cometbft.chain import (
    ACCEPT,
    MALFORMED,
    NOT_NEXT,
    OK,
    REJECT,
    Chain,
    chain_id_of,
)


class Driven:
    """A chain asked as the engine asks it."""

    def __init__(self, chain: Chain | None = None) -> None:
        self.chain = chain or Chain(GENESIS, Tally())
        self.height = 0

    def ask(self, kind: str, **fields: Any) -> Any:
        return getattr(self.chain.handle(abci.request(kind, **fields)), kind)

    def check(self, octets: bytes) -> int:
        return int(self.ask("check_tx", tx=octets).code)

    def block(self, *transactions: bytes) -> Any:
        self.height += 1
        answer = self.ask("finalize_block", txs=list(transactions), height=self.height)
        self.ask("commit")
        return answer


@pytest.mark.parametrize("seed", range(6))
def test_batches_of_our_replicas_lead_to_the_same_state_under_the_other_engine(seed: int) -> None:
    """The same application on both: digests of records, state, clients' table and batches."""
    world = ledger_world("honest", seed, requests=20)
    node = next(n for n in REPLICAS if not any(isinstance(r, Installed) for r in world.records(n)))
    known: dict[bytes, Batch] = {NOTHING_DIGEST: Batch(())}
    ordered: dict[int, Batch] = {}
    for record in world.records(node):
        if isinstance(record, Accepted) and record.proposal.batch is not None:
            known[record.proposal.digest] = record.proposal.batch
        elif isinstance(record, Committed):
            batch = record.batch if record.batch is not None else known[record.proof.digest]
            ordered[record.proof.sequence] = batch
    batches = [ordered[k] for k in sorted(ordered) if ordered[k].requests]
    assert len(batches) > 1
    driven = Driven(Chain(POOL, Register(), cheap_verify))
    own = Service(Register(), POOL, 64, 128)
    for batch in batches:
        answer = driven.block(*(encode(request) for request in batch.requests))
        done, _ = own.execute(own.sequence + 1, batch)
        results = [own.cached(one.client, one.number) for one in done]
        assert [r.data for r in answer.tx_results if r.code == OK] == [encode(r) for r in results]
    assert len(own.records) == 40
    live: Any = world.machine(node)
    assert driven.chain.service.state == live.service.state
    assert driven.chain.service.clients == live.service.clients
    assert driven.chain.service.summary(driven.chain.service.moment()) == own.summary(own.moment())


def test_a_block_without_requests_changes_nothing() -> None:
    """Otherwise the engine would make blocks for ever, each to certify the one before."""
    driven = Driven()
    first = driven.block(transaction(1))
    assert driven.block().app_hash == first.app_hash
    assert driven.block(transaction(2)).app_hash != first.app_hash
    assert driven.chain.service.sequence == 2


def test_a_block_is_executed_once_although_it_is_asked_for_twice() -> None:
    """An engine that fell over between a block and its commit asks again."""
    driven = Driven()
    driven.block(transaction(1))
    block = [transaction(2)]
    first = driven.ask("finalize_block", txs=block, height=2)
    told = driven.ask("info")
    assert told.last_block_height == 1
    assert driven.ask("finalize_block", txs=block, height=2) == first
    assert driven.chain.service.last(CLIENTS[0]) == 2
    driven.ask("commit")
    told = driven.ask("info")
    assert (told.last_block_height, told.last_block_app_hash) == (2, first.app_hash)


@pytest.mark.parametrize("height", [0, 1, 3])
def test_a_block_at_another_height_is_refused(height: int) -> None:
    """A gap in the order is a fork."""
    driven = Driven()
    driven.block(transaction(1))
    asked = abci.request("finalize_block", txs=[transaction(2)], height=height)
    assert abci.kind_of(driven.chain.handle(asked)) == "exception"
    assert driven.chain.service.last(CLIENTS[0]) == 1


def test_another_chain_is_refused() -> None:
    """Votes name the chain, which names the ledger."""
    chain = Chain(GENESIS, Tally())
    wrong = chain.handle(abci.request("init_chain", chain_id="veilgrid-0"))
    assert abci.kind_of(wrong) == "exception"
    right = chain.handle(abci.request("init_chain", chain_id=chain_id_of(GENESIS)))
    assert abci.kind_of(right) == "init_chain"
    assert len(chain_id_of(GENESIS)) <= 50


def _forged() -> bytes:
    signed = signed_request(NOTARY, SIGNERS["stranger"], CLIENTS[0], 1, (b"x",))
    return encode(signed)


def _system(operation: bytes) -> bytes:
    return encode(signed_request(NOTARY, SIGNERS[CLIENTS[0]], CLIENTS[0], 1, (operation,)))


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\xc1",
        _forged(),
        encode(signed_request(NOTARY, SIGNERS["stranger"], "stranger", 1, (b"x",))),
        _system(CHECKPOINT_OPERATION),
        _system(configure_operation(GENESIS)),
    ],
)
def test_what_no_client_has_signed_is_refused_at_each_step(octets: bytes) -> None:
    """At the door, in a proposal, and, whatever a quorum decided, in a block."""
    driven = Driven()
    assert driven.check(octets) == MALFORMED
    assert list(driven.ask("prepare_proposal", txs=[octets], max_tx_bytes=1 << 20).txs) == []
    assert driven.ask("process_proposal", txs=[octets]).status == REJECT
    answer = driven.block(octets, transaction(1))
    assert [result.code for result in answer.tx_results] == [MALFORMED, OK]


def test_a_replayed_request_is_executed_once() -> None:
    """A request that is on the wire can be sent by anybody, as often as he likes."""
    driven = Driven()
    one = transaction(1)
    assert driven.check(one) == OK
    driven.block(one)
    assert driven.check(one) == NOT_NEXT
    assert [result.code for result in driven.block(one, one).tx_results] == [NOT_NEXT] * 2
    assert driven.check(transaction(18)) == NOT_NEXT
    assert driven.check(transaction(17)) == OK


def test_a_proposal_keeps_each_clients_order_and_the_bounds() -> None:
    """The engine's pool is in the order of arrival."""
    driven = Driven()
    later = [transaction(k) for k in (3, 1, 2, 5)] + [transaction(1, CLIENTS[1])]
    asked = driven.ask("prepare_proposal", txs=later, max_tx_bytes=1 << 20)
    numbers = [(r.client, r.number) for r in map(driven.chain._read, asked.txs) if r]
    assert [n for c, n in numbers if c == CLIENTS[0]] == [1, 2, 3]
    assert (CLIENTS[1], 1) in numbers
    assert driven.ask("process_proposal", txs=list(asked.txs)).status == ACCEPT
    few = driven.ask("prepare_proposal", txs=later, max_tx_bytes=len(later[1]) + 20)
    assert list(few.txs) == [later[1]]
    large = [encode(request(k, operation=b"w" * 60_000)) for k in range(1, 17)]
    many = [encode(request(k, CLIENTS[1], b"w" * 60_000)) for k in range(1, 17)]
    assert driven.ask("process_proposal", txs=[*large, *many]).status == REJECT
    chosen = driven.ask("prepare_proposal", txs=[*large, *many], max_tx_bytes=4 << 20)
    assert driven.ask("process_proposal", txs=list(chosen.txs)).status == ACCEPT


def test_answers_are_found_again() -> None:
    """Who missed the block asks for its result."""
    driven = Driven()
    data = driven.block(transaction(1)).tx_results[0].data
    assert driven.ask("query", path="reply", data=encode((CLIENTS[0], 1))).value == data
    assert driven.ask("query", path="reply", data=encode((CLIENTS[0], 2))).code == MALFORMED
    assert driven.ask("query", path="last", data=CLIENTS[0].encode()).value == encode(1)
    assert driven.ask("query", path="nothing").code == MALFORMED
