"""A ledger of four validators and two clients for the tests under CometBFT."""

import hashlib

from veilgrid.ledger.message import Configuration, Member, Notary, Request, encode, signed_request
from veilgrid.secret import Secret
from veilgrid.signature import Signer

VALIDATORS = tuple(f"validator-{index}" for index in range(1, 5))
CLIENTS = ("client-1", "client-2")
SIGNERS = {
    name: Signer(Secret(hashlib.sha256(b"cometbft " + name.encode()).digest()))
    for name in (*VALIDATORS, *CLIENTS, "stranger")
}


def members(names: tuple[str, ...]) -> tuple[Member, ...]:
    return tuple(Member(name, SIGNERS[name].verify_key) for name in names)


GENESIS = Configuration(0, members(VALIDATORS), members(CLIENTS))
NOTARY = Notary(GENESIS.digest())


def request(number: int, client: str = CLIENTS[0], operation: bytes = b"x") -> Request:
    return signed_request(NOTARY, SIGNERS[client], client, number, (operation,))


def transaction(number: int, client: str = CLIENTS[0], operation: bytes = b"x") -> bytes:
    return encode(request(number, client, operation))
