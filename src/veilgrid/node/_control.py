"""What the supervisor and the processes of a local deployment say to each other [node 7]."""

import importlib
import inspect
import struct
import typing
from collections.abc import Callable
from typing import Any, Final

import msgspec

from veilgrid.errors import SetupError
from veilgrid.machine import Machine

"""Name of the timer that fires once when a machine may begin, also after a restart."""

CONNECT_TIMEOUT_S: Final = 60.0

LENGTH: Final = struct.Struct(">I")
_OFFERED: Final = "me, arguments, records, randomness, peers, signer, verify_keys"


class Begin(msgspec.Struct, frozen=True, tag=True):
    node: str
    role: str
    factory: str
    messages: str
    arguments: bytes
    records: str | None
    journal: str
    folder: str
    host: str
    port: int
    compute_threads: int
    audit: str
    journal_key: bytes
    frame_length_max: int


class Address(msgspec.Struct, frozen=True):
    node: str
    role: str
    host: str
    port: int
    verify_key: bytes


class Directory(msgspec.Struct, frozen=True, tag=True):
    addresses: list[Address]
    awaited: list[str]


class Go(msgspec.Struct, frozen=True, tag=True):
    timeout_s: float


class Post(msgspec.Struct, frozen=True, tag=True):
    body: bytes


class Rotate(msgspec.Struct, frozen=True, tag=True):
    pass


class Stop(msgspec.Struct, frozen=True, tag=True):
    pass


class Listening(msgspec.Struct, frozen=True, tag=True):
    port: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    pass


class Decided(msgspec.Struct, frozen=True, tag=True):
    body: bytes
    seconds: float


class Finished(msgspec.Struct, frozen=True, tag=True):
    octets_sent: int
    octets_received: int
    frames_sent: int
    peak_memory_octets: int


ToProcess = Begin | Directory | Go | Post | Rotate | Stop
ToSupervisor = Listening | Ready | Decided | Finished
encode: Final = msgspec.msgpack.Encoder().encode


def framed(message: Any) -> bytes:
    body = encode(message)
    return LENGTH.pack(len(body)) + body


def load_name(name: str) -> Any:
    """Return what ``package.module:name`` refers to.

    Raises
    ------
    SetupError
        There is no such module or name.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise SetupError(f"{name}: no module {error.name}; is it installed here?") from None
    if not attribute or not hasattr(module, attribute):
        raise SetupError(
            f"{name}: module {module_name} has no {attribute or 'name after the colon'}"
        )
    return getattr(module, attribute)


def build_machine(factory: str, arguments: bytes, **offered: Callable[[], Any]) -> Machine:
    """Call the factory with what it asks for by name.

    Parameters
    ----------
    factory
        ``package.module:function``.
    arguments
        msgpack; decoded into the annotation of the factory's parameter ``arguments``.
    **offered
        What may be asked for, made only if it is.
    """
    function = load_name(factory)
    values: dict[str, Any] = {}
    for name in inspect.signature(function).parameters:
        if name == "arguments":
            hint = typing.get_type_hints(function).get(name, Any)
            try:
                values[name] = msgspec.msgpack.decode(arguments, type=hint)
            except msgspec.ValidationError:
                raise SetupError(f"the arguments given to {factory} are not {hint}") from None
        elif name in offered:
            values[name] = offered[name]()
        else:
            raise SetupError(f"{factory} asks for {name!r}, which is none of {_OFFERED}")
    machine: Machine = function(**values)
    return machine
