"""Values that must not be shown, stored or sent by accident, and where randomness comes from."""

import hmac
import secrets
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import numpy as np

T = TypeVar("T")


class Secret(Generic[T]):
    """Wrap a share, a mask, a key or a raw bid.

    ``repr`` shows the type only, pickling raises and no encoder knows it. Sending it means calling
    :meth:`reveal_to`, which is easy to search for.
    """

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        self._value = value

    def reveal_to(self, receiver: object) -> T:
        """Return the value. ``receiver`` names who sees it; the caller vouches for the policy."""
        if receiver is None:
            raise ValueError("name the receiver of a secret")
        return self._value

    def __repr__(self) -> str:
        return f"Secret[{type(self._value).__name__}]"

    __str__ = __repr__

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret cannot be pickled or copied")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(_octets(self._value), _octets(other._value))

    __hash__ = None  # type: ignore[assignment]


def _octets(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, np.ndarray):
        return str(value.dtype).encode() + str(value.shape).encode() + value.tobytes()
    return repr(value).encode()


class Randomness(Protocol):
    """Where a machine may draw from; passed in, never global."""

    is_deterministic: bool

    def octets(self, count: int) -> bytes:
        """Return ``count`` random octets."""
        ...


class SystemRandomness:
    """The operating system's generator; for anything real."""

    is_deterministic = False

    def octets(self, count: int) -> bytes:
        """Return ``count`` octets that nobody can predict."""
        return secrets.token_bytes(count)


class SeededRandomness:
    """Reproducible octets for simulations and tests; the node driver refuses it."""

    is_deterministic = True

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def octets(self, count: int) -> bytes:
        """Return the next ``count`` octets of the seed's stream."""
        return self._generator.bytes(count)
