"""A socket on which CometBFT asks its application [ledger 11.2]."""

import asyncio
import logging
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import DecodeError

from veilgrid.node.cometbft import abci
from veilgrid.node.cometbft.chain import Chain

_READ_LENGTH: Final = 1 << 18
_log = logging.getLogger("veilgrid.node.cometbft")


async def serve(chain: Chain, path: Path) -> asyncio.Server:
    """Listen on a Unix socket that only this user can reach; CometBFT opens four connections.

    All are answered by one loop, one request at a time, so that the mempool's questions and
    consensus see the same state.
    """

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        buffer = bytearray()
        try:
            while octets := await reader.read(_READ_LENGTH):
                buffer += octets
                if _answer(chain, buffer, writer):
                    await writer.drain()
        except (ConnectionError, ValueError, DecodeError) as error:
            _log.warning("a connection of CometBFT ended: %s", error)
        finally:
            writer.close()

    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    return await asyncio.start_unix_server(talk, path)


def _answer(chain: Chain, buffer: bytearray, writer: Any) -> bool:
    """Answer every whole message of the buffer; True if something was written."""
    is_written = False
    while (body := abci.unframed(buffer)) is not None:
        answer = chain.handle(abci.Request.FromString(body))
        writer.write(abci.framed(answer))
        is_written = True
    return is_written
