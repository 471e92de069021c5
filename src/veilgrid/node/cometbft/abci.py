"""Messages of ABCI 2.0 on a socket: the fields that are used here, and their framing [ledger 11.2].

Each message is preceded by its length as a varint. Messages are those of ``tendermint.abci`` as
CometBFT 0.38 publishes them; fields that nobody here reads are left out and skipped by protobuf.
"""

from collections.abc import Mapping
from typing import Any, Final

from veilgrid.errors import SetupError, invariant

LENGTH_MAX: Final = 16 << 20
"""Octets of one message: CometBFT's blocks have 4 MiB here."""
_PACKAGE: Final = "tendermint.abci"
_TYPES: Final = {"int64": 3, "uint64": 4, "bool": 8, "string": 9, "bytes": 12, "uint32": 13}
_MESSAGE, _OPTIONAL, _REPEATED = 11, 1, 3
Fields = Mapping[str, tuple[int, str]]

_REQUESTS: Final[Mapping[str, tuple[int, Fields]]] = {
    "echo": (1, {"message": (1, "string")}),
    "flush": (2, {}),
    "info": (3, {"version": (1, "string"), "abci_version": (4, "string")}),
    "init_chain": (5, {"chain_id": (2, "string"), "app_state_bytes": (5, "bytes")}),
    "query": (6, {"data": (1, "bytes"), "path": (2, "string"), "height": (3, "int64")}),
    "check_tx": (8, {"tx": (1, "bytes")}),
    "commit": (11, {}),
    "list_snapshots": (12, {}),
    "offer_snapshot": (13, {}),
    "load_snapshot_chunk": (14, {}),
    "apply_snapshot_chunk": (15, {}),
    "prepare_proposal": (16, {"max_tx_bytes": (1, "int64"), "txs": (2, "bytes*")}),
    "process_proposal": (17, {"txs": (1, "bytes*"), "height": (5, "int64")}),
    "extend_vote": (18, {}),
    "verify_vote_extension": (19, {}),
    "finalize_block": (20, {"txs": (1, "bytes*"), "height": (5, "int64")}),
}
_RESULT: Final[Fields] = {"code": (1, "uint32"), "data": (2, "bytes"), "log": (3, "string")}
_RESPONSES: Final[Mapping[str, tuple[int, Fields]]] = {
    "exception": (1, {"error": (1, "string")}),
    "echo": (2, {"message": (1, "string")}),
    "flush": (3, {}),
    "info": (
        4,
        {
            "data": (1, "string"),
            "version": (2, "string"),
            "app_version": (3, "uint64"),
            "last_block_height": (4, "int64"),
            "last_block_app_hash": (5, "bytes"),
        },
    ),
    "init_chain": (6, {"app_hash": (3, "bytes")}),
    "query": (
        7,
        {
            "code": (1, "uint32"),
            "log": (3, "string"),
            "value": (7, "bytes"),
            "height": (9, "int64"),
        },
    ),
    "check_tx": (9, _RESULT),
    "commit": (12, {"retain_height": (3, "int64")}),
    "list_snapshots": (13, {}),
    "offer_snapshot": (14, {"result": (1, "uint32")}),
    "load_snapshot_chunk": (15, {"chunk": (1, "bytes")}),
    "apply_snapshot_chunk": (16, {"result": (1, "uint32")}),
    "prepare_proposal": (17, {"txs": (1, "bytes*")}),
    "process_proposal": (18, {"status": (1, "uint32")}),
    "extend_vote": (19, {"vote_extension": (1, "bytes")}),
    "verify_vote_extension": (20, {"status": (1, "uint32")}),
    "finalize_block": (21, {"tx_results": (2, "ExecTxResult*"), "app_hash": (5, "bytes")}),
}


def _built() -> tuple[type[Any], type[Any]]:
    """Return the classes of requests and responses."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError:
        advice = "pip install 'veilgrid[cometbft]'"
        raise SetupError(f"protobuf is missing, which speaks to CometBFT: {advice}") from None
    file = descriptor_pb2.FileDescriptorProto(
        name="veilgrid/abci.proto", package=_PACKAGE, syntax="proto3"
    )

    def add(name: str, fields: Fields) -> None:
        message = file.message_type.add(name=name)
        for key, (number, kind) in fields.items():
            bare = kind.removesuffix("*")
            field = message.field.add(
                name=key,
                number=number,
                label=_REPEATED if kind.endswith("*") else _OPTIONAL,
                type=_TYPES.get(bare, _MESSAGE),
            )
            if bare not in _TYPES:
                field.type_name = f".{_PACKAGE}.{bare}"

    add("ExecTxResult", _RESULT)
    for side, kinds in (("Request", _REQUESTS), ("Response", _RESPONSES)):
        for key, (_, fields) in kinds.items():
            add(side + _camel(key), fields)
        add(side, {key: (number, side + _camel(key)) for key, (number, _) in kinds.items()})
        message = file.message_type[-1]
        message.oneof_decl.add(name="value")
        for field in message.field:
            field.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = [
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{side}"))
        for side in ("Request", "Response")
    ]
    return found[0], found[1]


def _camel(name: str) -> str:
    return "".join(part.title() for part in name.split("_"))


Request, Response = _built()


def kind_of(message: Any) -> str:
    """Return which request or response this is; empty if it is none that is known."""
    return str(message.WhichOneof("value") or "")


def request(kind: str, **fields: Any) -> Any:
    """Return a request of this kind."""
    return _filled(Request(), kind, fields)


def response(kind: str, **fields: Any) -> Any:
    """Return a response whose oneof is set, even when it has no fields.

    CometBFT takes a response without it for one of an unknown kind and stops.
    """
    return _filled(Response(), kind, fields)


def _filled(message: Any, kind: str, fields: Mapping[str, Any]) -> Any:
    part = getattr(message, kind)
    part.SetInParent()
    for key, value in fields.items():
        if not isinstance(value, list | tuple):
            setattr(part, key, value)
        elif value and isinstance(value[0], Mapping):
            for one in value:
                getattr(part, key).add(**one)
        else:
            getattr(part, key).extend(value)
    invariant(kind_of(message) == kind, "a message says of which kind it is")
    return message


def framed(message: Any) -> bytes:
    """Return a message with its length in front."""
    octets = message.SerializeToString()
    length, head = len(octets), bytearray()
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head) + bytes(octets)


def unframed(buffer: bytearray) -> bytes | None:
    """Take the first whole message off ``buffer``; None while it is not there.

    Raises
    ------
    ValueError
        The length cannot be one.
    """
    length = shift = 0
    for place, octet in enumerate(buffer):
        length |= (octet & 0x7F) << shift
        shift += 7
        if length > LENGTH_MAX or shift > 35:
            raise ValueError(f"a message of more than {LENGTH_MAX} octets")
        if not octet & 0x80:
            stop = place + 1 + length
            if len(buffer) < stop:
                return None
            body = bytes(buffer[place + 1 : stop])
            del buffer[:stop]
            return body
    return None
