"""Processes in network namespaces of their own, with a delay between them [node 7.1].

Each namespace has one TUN device; a thread of this process carries packets from one to another
after the delay. Nothing has a name outside: when this process ends, however it does, namespaces
and devices are gone. Packets keep the size that TCP segments have on Ethernet, so TCP starts as
slowly as over a real distance; the kernel hands over up to 64 KiB of segments at a time, which
keeps the thread cheap.
"""

import contextlib
import ctypes
import fcntl
import os
import select
import socket
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Final

from veilgrid.errors import SetupError, invariant
from veilgrid.machine import NodeId
from veilgrid.node.wiring import Relays

_CLONE_NEWNET: Final = 0x40000000
_TUN_SET_INTERFACE: Final = 0x400454CA
_TUN_SET_OFFLOAD: Final = 0x400454D0
_FLAGS: Final = 0x0001 | 0x1000 | 0x4000
"""TUN, without packet information, with a header of segmentation."""
_OFFLOAD: Final = 0x01 | 0x02  # Checksums and TCP segmentation are left to the receiver.
_SET_ADDRESS, _SET_MASK, _SET_FLAGS = 0x8916, 0x891C, 0x8914
_UP_AND_RUNNING: Final = 0x41
_VIRTIO_LENGTH: Final = 10
_DESTINATION: Final = slice(_VIRTIO_LENGTH + 16, _VIRTIO_LENGTH + 20)
_DEVICE: Final = b"day"
_QUEUE: Final = 10_000
_PACKET_MAX: Final = 1 << 17
_BURST: Final = 64
_PINGS: Final = 15
_RIGHTS: Final = (
    "run it as root, or with `unshare --user --map-root-user --net` in front, "
    "or take relays on loopback (--delay-by relays)"
)


def _system_call(what: str, number: int) -> None:
    if number != 0:
        reason = os.strerror(ctypes.get_errno())
        raise SetupError(f"cannot {what} ({reason}); {_RIGHTS}")


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "setns"):
        raise SetupError(f"this system has no network namespaces; {_RIGHTS}")
    return library


class Namespaces:
    """One namespace a process, all joined by links of one delay; a context manager.

    Entering a namespace moves the calling thread alone.

    Parameters
    ----------
    delay_s : >= 0
        One way, the same between any two.

    Raises
    ------
    SetupError
        This process may not make namespaces or TUN devices.
    """

    def __init__(self, nodes: Sequence[NodeId], delay_s: float) -> None:
        invariant(0 < len(nodes) < 250, "there is an address for every process")
        self._nodes, self._delay_s = list(nodes), delay_s
        self._library = _library()
        self._home = self._namespace()
        self._places: dict[NodeId, int] = {}
        self._devices: dict[bytes, int] = {}
        self._by_kernel = False
        self._stop, self._stopping = os.pipe()
        self._thread = threading.Thread(target=self._carry, name="links")

    @property
    def what(self) -> str:
        """Say what holds packets up."""
        link = "netem" if self._by_kernel else "own links between TUN devices"
        return f"network namespaces, {link}"

    def __enter__(self) -> "Namespaces":
        try:
            for node in self._nodes:
                self._make(node)
            self._by_kernel = self._delay_s > 0 and all(map(self._has_netem, self._nodes))
        except BaseException:
            self._close()
            raise
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._stopping, b"!")
        self._thread.join()
        self._close()

    def host(self, node: NodeId) -> str:
        """Return the address of a process in its own namespace."""
        return f"10.77.0.{self._nodes.index(node) + 1}"

    def reached(self, node: NodeId, port: int) -> tuple[str, int]:
        """Return the same address: no other is in between."""
        return self.host(node), port

    @contextlib.contextmanager
    def inside(self, node: NodeId) -> Iterator[None]:
        """Move this thread into a namespace; processes and sockets made meanwhile stay there."""
        self._enter(self._places[node])
        try:
            yield
        finally:
            self._enter(self._home)

    def round_trip_s(self) -> float:
        """Measure between the first two processes, as the median of some octets' way and back."""
        here, there = self._nodes[:2]
        with self.inside(there), socket.create_server((self.host(there), 0)) as server:
            port = server.getsockname()[1]
            with self.inside(here):
                asking = socket.create_connection((self.host(there), port), timeout=10)
            answering, _ = server.accept()
        with asking, answering:
            for one in (asking, answering):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return median(_ping(asking, answering) for _ in range(_PINGS))

    # -- set up ----------------------------------------------------------------------------------

    @staticmethod
    def _namespace() -> int:
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def _enter(self, place: int) -> None:
        _system_call("enter a network namespace", self._library.setns(place, _CLONE_NEWNET))

    def _make(self, node: NodeId) -> None:
        """Make a namespace with its device up."""
        _system_call("make a network namespace", self._library.unshare(_CLONE_NEWNET))
        try:
            self._places[node] = self._namespace()
            self._devices[socket.inet_aton(self.host(node))] = self._device(self.host(node))
        finally:
            self._enter(self._home)

    @staticmethod
    def _device(host: str) -> int:
        try:
            device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise SetupError(f"cannot open /dev/net/tun ({error.strerror}); {_RIGHTS}") from None
        try:
            fcntl.ioctl(device, _TUN_SET_INTERFACE, struct.pack("16sH22x", _DEVICE, _FLAGS))
            fcntl.ioctl(device, _TUN_SET_OFFLOAD, _OFFLOAD)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as tool:
                for request, address in ((_SET_ADDRESS, host), (_SET_MASK, "255.255.0.0")):
                    told = struct.pack(
                        "16sHH4s8x", _DEVICE, socket.AF_INET, 0, socket.inet_aton(address)
                    )
                    fcntl.ioctl(tool, request, told)
                fcntl.ioctl(tool, _SET_FLAGS, struct.pack("16sH22x", _DEVICE, _UP_AND_RUNNING))
        except OSError as error:
            os.close(device)
            raise SetupError(f"cannot make a TUN device ({error.strerror}); {_RIGHTS}") from None
        return device

    def _has_netem(self, node: NodeId) -> bool:
        """Let the kernel hold packets up where it can."""
        delay = f"{self._delay_s * 1e6:.0f}us"
        device = _DEVICE.decode()
        command = ["tc", "qdisc", "add", "dev", device, "root", "netem", "delay", delay]
        try:
            with self.inside(node):
                done = subprocess.run(  # noqa: S603 - no part of it comes from outside
                    [*command, "limit", str(_QUEUE)], capture_output=True, check=False
                )
        except OSError:
            return False  # There is no tc.
        return done.returncode == 0

    def _close(self) -> None:
        for number in (*self._places.values(), *self._devices.values()):
            os.close(number)
        for number in (self._home, self._stop, self._stopping):
            os.close(number)
        self._places.clear()
        self._devices.clear()

    # -- packets ---------------------------------------------------------------------------------

    def _carry(self) -> None:
        """Carry packets to where they go, each after the delay, until told to stop."""
        delay_s = 0.0 if self._by_kernel else self._delay_s
        waiting: deque[tuple[float, int, bytes]] = deque()
        watched = [self._stop, *self._devices.values()]
        while True:
            wait = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
            ready, _, _ = select.select(watched, [], [], wait)
            if self._stop in ready:
                return
            for device in ready:
                for packet in self._read(device):
                    target = self._devices.get(packet[_DESTINATION])
                    if target is not None:  # What the kernel says to nobody in particular.
                        waiting.append((time.monotonic() + delay_s, target, packet))
            while waiting and waiting[0][0] <= time.monotonic():
                _, target, packet = waiting.popleft()
                with contextlib.suppress(OSError):  # TCP repeats what a full device refuses.
                    os.write(target, packet)

    @staticmethod
    def _read(device: int) -> Iterator[bytes]:
        for _ in range(_BURST):
            try:
                yield os.read(device, _PACKET_MAX)
            except BlockingIOError:
                return


def _ping(asking: socket.socket, answering: socket.socket) -> float:
    began = time.perf_counter()
    asking.sendall(b"?")
    answering.recv(1)
    answering.sendall(b"!")
    asking.recv(1)
    return time.perf_counter() - began


def apart(by: str, nodes: Sequence[NodeId], delay_s: float) -> "Namespaces | Relays":
    """Return what keeps processes apart.

    Parameters
    ----------
    by
        ``namespaces`` or ``relays``.
    nodes
        All processes.
    delay_s : >= 0
        One way.

    Raises
    ------
    SetupError
        This process may not make namespaces, or the word is another.
    """
    if by == "relays":
        return Relays(delay_s)
    if by == "namespaces":
        return Namespaces(nodes, delay_s)
    raise SetupError(f"processes cannot be kept apart by {by}; use namespaces or relays")
