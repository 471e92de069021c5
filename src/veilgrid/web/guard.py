"""What stands before every route: limits on size and rate, names of this host, headers, the token.

Nothing here uses cookies: whoever starts work sends the token with that very request, so no page
of somebody else can do it in a user's name.
"""

import base64
import binascii
import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from veilgrid.errors import invariant
from veilgrid.secret import Secret

TOKEN_LENGTH_MIN = 16
ADDRESSES_MAX = 1024

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: "
    "blob:; connect-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
"""Styles may stand in elements because plotly writes them there; scripts may not."""

REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src "
    "'unsafe-inline'; img-src data: blob:; frame-ancestors 'self'"
)
"""Of HTML files from the folder: they run in an origin of their own and reach nothing here."""

HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
"""Sent with every answer unless the route says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Limits of the listener.

    Attributes
    ----------
    requests_per_s, burst_count
        Of one address; more are answered 429.
    body_octets, path_octets
        More are answered 413 and 414.
    stream_count
        Of live streams at the same time.
    queue_count
        Of jobs that wait.
    job_s
        A job that takes longer is ended.
    """

    requests_per_s: float = 50.0
    burst_count: int = 200
    body_octets: int = 65_536
    path_octets: int = 4096
    stream_count: int = 32
    queue_count: int = 8
    job_s: float = 3600.0


class Token:
    """The secret that starting work needs; compared in constant time."""

    def __init__(self, text: Secret[str]) -> None:
        octets = text.reveal_to(self).encode()
        invariant(len(octets) >= TOKEN_LENGTH_MIN, "a token cannot be guessed")
        self._digest = Secret(hashlib.sha256(octets).digest())

    def is_right(self, shown: str | None) -> bool:
        """Whether ``shown`` is the token."""
        given = hashlib.sha256((shown or "").encode("utf-8", "surrogateescape")).digest()
        return hmac.compare_digest(given, self._digest.reveal_to(self))


def bearer(request: Request) -> str | None:
    """Return the token of an ``Authorization: Bearer`` header."""
    kind, _, rest = request.headers.get("authorization", "").partition(" ")
    return rest.strip() if kind.lower() == "bearer" else None


def _password(header: str) -> str | None:
    """Return the token of a header that may only read: Bearer, or the password of Basic."""
    kind, _, rest = header.partition(" ")
    if kind.lower() == "bearer":
        return rest.strip()
    if kind.lower() != "basic":
        return None
    try:
        return base64.b64decode(rest, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return None


class Guard:
    """Refuse what is too much, too large or for another host; add headers to every answer.

    Attributes
    ----------
    hosts
        Names under which this server may be called; a page elsewhere whose name was made to
        lead here is refused.
    reader
        The token that reading needs, too; None where only this machine can connect.
    """

    def __init__(
        self,
        app: ASGIApp,
        bounds: Bounds,
        hosts: Collection[str],
        reader: Token | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app, self._bounds, self._clock = app, bounds, clock
        self._hosts, self._reader = frozenset(hosts), reader
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        sending = _with_headers(send)
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, sending)
            return
        await self._app(scope, self._limited(receive), sending)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = {key.lower(): value.decode("latin-1") for key, value in scope["headers"]}
        if not self._has_room(str((scope.get("client") or ("unknown",))[0])):
            return refused(429, "too many requests", {"retry-after": "1"})
        if (
            len(scope.get("raw_path") or b"") + len(scope["query_string"])
            > self._bounds.path_octets
        ):
            return refused(414, "the address is too long")
        if _host(headers.get(b"host", "")) not in self._hosts:
            return refused(421, "this server has another name")
        length = headers.get(b"content-length", "0")
        if not length.isdecimal() or int(length[:12]) > self._bounds.body_octets:
            return refused(413, f"a body has at most {self._bounds.body_octets} octets")
        if self._reader is not None and scope["path"] != "/api/health":
            shown = _password(headers.get(b"authorization", ""))
            if not self._reader.is_right(shown):
                return refused(401, "the token is needed", {"www-authenticate": "Basic"})
        return None

    def _has_room(self, address: str) -> bool:
        """Take one request off what an address has left; it grows back with time."""
        now = self._clock()
        left, before = self._left.pop(address, (float(self._bounds.burst_count), now))
        left = min(
            float(self._bounds.burst_count), left + (now - before) * self._bounds.requests_per_s
        )
        self._left[address] = (max(left - 1.0, 0.0), now)
        if len(self._left) > ADDRESSES_MAX:
            self._left.popitem(last=False)
        return left >= 1.0

    def _limited(self, receive: Receive) -> Receive:
        """Count octets of a body whose length was not told."""
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._bounds.body_octets:
                raise HTTPException(413, f"a body has at most {self._bounds.body_octets} octets")
            return message

        return counted


def refused(status: int, problem: str, headers: dict[str, str] | None = None) -> Response:
    """Answer with one finding as JSON."""
    finding = {"where": "request", "problem": problem, "advice": ""}
    body = msgspec.json.encode({"findings": [finding]})
    return Response(body, status, headers, "application/json")


def _host(header: str) -> str:
    """Return the host without its port, in lower case."""
    if header.startswith("["):
        return header.partition("]")[0].lstrip("[").lower()
    return header.partition(":")[0].lower()


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = {key.lower() for key, _ in message["headers"]}
            added = [
                (name.encode(), value.encode())
                for name, value in HEADERS.items()
                if name.encode() not in present
            ]
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return sending
