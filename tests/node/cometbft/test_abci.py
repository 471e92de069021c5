"""Messages of ABCI as CometBFT 0.38 reads them, framed, and a whole recorded conversation."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from cometbft_ledger import GENESIS
from hypothesis import given
from hypothesis import strategies as st

from veilgrid.ledger.workload import Tally
from veilgrid.node.cometbft import abci
from veilgrid.node.cometbft.chain import Chain
from veilgrid.node.cometbft.server import serve

CONVERSATION = json.loads(
    (Path(__file__).parents[2] / "vectors" / "cometbft.json").read_text(encoding="utf-8")
)["messages"]
KINDS = [field.name for field in abci.Request.DESCRIPTOR.fields]


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_says_of_which_kind_it_is(kind: str) -> None:
    """CometBFT stops at a response whose oneof is not set, and empty parts are easily lost."""
    answer = Chain(GENESIS, Tally()).handle(abci.request(kind))
    expected = kind if kind not in ("init_chain", "finalize_block") else "exception"
    octets = answer.SerializeToString()
    assert octets
    assert abci.kind_of(abci.Response.FromString(octets)) == expected


def test_a_request_of_no_kind_is_answered_and_not_raised_at() -> None:
    assert abci.kind_of(Chain(GENESIS, Tally()).handle(abci.Request())) == "exception"


@pytest.mark.parametrize(
    ("message", "octets"),
    [
        (abci.response("flush"), "021a00"),
        (abci.response("commit"), "026200"),
        (abci.response("process_proposal", status=1), "059201020801"),
        (abci.request("echo", message="hi"), "060a040a026869"),
        (
            abci.response("finalize_block", tx_results=[{"code": 1}], app_hash=b"h"),
            "0aaa0107120208012a0168",
        ),
    ],
)
def test_octets_are_those_of_the_published_numbers(message: Any, octets: str) -> None:
    """Written down by hand from the fields' numbers: a renumbered field would not be seen else."""
    assert abci.framed(message).hex() == octets


@given(texts=st.lists(st.text(max_size=300), min_size=1, max_size=5), cut=st.integers(1, 50))
def test_messages_arrive_whole_however_they_are_cut(texts: list[str], cut: int) -> None:
    """Sockets hand over octets, not messages."""
    stream = b"".join(abci.framed(abci.request("echo", message=text)) for text in texts)
    buffer, found = bytearray(), []
    for start in range(0, len(stream), cut):
        buffer += stream[start : start + cut]
        while (body := abci.unframed(buffer)) is not None:
            found.append(abci.Request.FromString(body).echo.message)
    assert found == texts
    assert not buffer


@pytest.mark.parametrize("head", ["ffffffff7f", "ffffffffffffff"])
def test_a_length_that_cannot_be_ends_the_connection(head: str) -> None:
    """Memory is not promised to whoever names a number."""
    with pytest.raises(ValueError, match="octets"):
        abci.unframed(bytearray(bytes.fromhex(head)))


async def _talk(path: Path, messages: list[list[str]]) -> list[str]:
    server = await serve(Chain(GENESIS, Tally()), path)
    async with server:
        reader, writer = await asyncio.open_unix_connection(path)
        answers, buffer = [], bytearray()
        for asked, _ in messages:
            writer.write(abci.framed(abci.Request.FromString(bytes.fromhex(asked))))
            await writer.drain()
            while (body := abci.unframed(buffer)) is None:
                buffer += await reader.read(1 << 16)
            answers.append(body.hex())
        writer.close()
        await writer.wait_closed()
    return answers


def test_a_recorded_conversation_is_answered_as_it_was(tmp_path: Path) -> None:
    """The engine accepted these answers; whoever replays its blocks must give the same ones."""
    answers = asyncio.run(_talk(tmp_path / "application.sock", CONVERSATION))
    assert answers == [answer for _, answer in CONVERSATION]
    kinds = {abci.kind_of(abci.Request.FromString(bytes.fromhex(m))) for m, _ in CONVERSATION}
    assert {"info", "init_chain", "check_tx", "finalize_block", "commit", "query"} <= kinds


@given(octets=st.binary(max_size=200))
def test_octets_of_anybody_do_not_raise(octets: bytes) -> None:
    """Transactions come from whoever reaches the engine."""
    chain = Chain(GENESIS, Tally())
    assert chain.handle(abci.request("check_tx", tx=octets)).check_tx.code
    assert chain.handle(abci.request("process_proposal", txs=[octets])).process_proposal.status == 2
    answer = chain.handle(abci.request("finalize_block", txs=[octets], height=1))
    assert answer.finalize_block.tx_results[0].code
    assert chain.handle(abci.request("query", path="reply", data=octets)).query.code
