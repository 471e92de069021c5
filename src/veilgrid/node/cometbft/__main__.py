"""Run one application for CometBFT: ``python -m veilgrid.node.cometbft SOCKET CONFIGURATION``.

``CONFIGURATION`` is a file with the msgpack of the ledger's first configuration. The application
that is replicated is named by ``--application PACKAGE.MODULE:FUNCTION``; the function is given the
configuration.
"""

import argparse
import asyncio
import signal
from pathlib import Path

import msgspec

from veilgrid.ledger.message import Configuration
from veilgrid.node._control import load_name
from veilgrid.node.cometbft.chain import Chain
from veilgrid.node.cometbft.server import serve

TALLY = "veilgrid.ledger.workload:tally_of"


async def _run(path: Path, chain: Chain) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    server = await serve(chain, path)
    async with server:
        await stopped.wait()


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("socket", type=Path)
    parser.add_argument("configuration", type=Path)
    parser.add_argument("--application", default=TALLY)
    arguments = parser.parse_args()
    octets = arguments.configuration.read_bytes()
    genesis = msgspec.msgpack.decode(octets, type=Configuration)
    chain = Chain(genesis, load_name(arguments.application)(genesis))
    asyncio.run(_run(arguments.socket, chain))


if __name__ == "__main__":
    main()
