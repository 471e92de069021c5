"""CometBFT's processes on this machine, each beside an application of ours [ledger 11.3]."""

import base64
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from veilgrid.errors import RunAborted, SetupError
from veilgrid.ledger.message import Configuration, encode
from veilgrid.node.cometbft.chain import chain_id_of

BINARY: Final = "cometbft"
SERIES: Final = "0.38."
HOW: Final = "make cometbft (needs Go), or put a cometbft 0.38.x on PATH"
TALLY: Final = "veilgrid.ledger.workload:tally_of"
TUNED: Final[Mapping[str, Mapping[str, str]]] = {
    "": {"log_level": '"error"'},
    "rpc": {"max_body_bytes": "4000000"},
    "p2p": {
        "addr_book_strict": "false",
        "allow_duplicate_ip": "true",
        "pex": "false",
        "flush_throttle_timeout": '"5ms"',
    },
    "consensus": {
        "timeout_propose": '"500ms"',
        "timeout_commit": '"1ms"',
        "peer_gossip_sleep_duration": '"5ms"',
        "create_empty_blocks": "false",
    },
    "tx_index": {"indexer": '"null"'},
}
"""What differs from CometBFT's own configuration; its defaults take 1.3 s a block."""
_START_S: Final = 60.0


def find_engine() -> Path | None:
    """Return where CometBFT is: beside our interpreter (``make cometbft``), or on PATH."""
    own = Path(sys.executable).parent / BINARY
    found = str(own) if own.is_file() else shutil.which(BINARY)
    return Path(found) if found else None


def engine_version(binary: Path) -> str:
    """Return the version of a CometBFT.

    Raises
    ------
    SetupError
        It is none of the series whose ABCI is spoken here.
    """
    version = _asked(binary, "version").strip()
    if not version.startswith(SERIES):
        raise SetupError(f"{binary} is CometBFT {version[:40]!r}, {SERIES}x is needed: {HOW}")
    return version


@dataclass(slots=True)
class _Validator:
    home: Path
    p2p_port: int
    rpc_port: int
    node_id: str
    public_key: dict[str, str]
    application: subprocess.Popen[bytes] | None = None
    engine: subprocess.Popen[bytes] | None = None


class Engine:
    """Validators of CometBFT and their applications, started, asked and ended.

    Use it as a context manager: leaving it ends every process it started, each by its own pid.

    Parameters
    ----------
    genesis
        Of the ledger: whose requests are executed. One validator is made for each replica.
    application
        ``package.module:function`` that makes what is replicated from ``genesis``.
    is_tuned
        Whether CometBFT gets the settings of :data:`TUNED`.
    """

    def __init__(
        self, genesis: Configuration, *, application: str = TALLY, is_tuned: bool = True
    ) -> None:
        binary = find_engine()
        if binary is None:
            raise SetupError(f"CometBFT is not installed: {HOW}")
        self.version = engine_version(binary)
        self._binary, self._genesis, self._application = binary, genesis, application
        self._is_tuned = is_tuned
        self.folder = Path(tempfile.mkdtemp(prefix="veilgrid-cometbft-"))
        self._validators: list[_Validator] = []

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Make keys and settings, start everything, wait until all validators answer.

        Raises
        ------
        RunAborted
            A process ended, or did not answer in time; the text repeats the end of its log.
        """
        configuration = self.folder / "configuration"
        configuration.write_bytes(encode(self._genesis))
        ports = _free_ports(2 * len(self._genesis.replicas))
        for index in range(len(self._genesis.replicas)):
            self._validators.append(self._made(index, ports[2 * index], ports[2 * index + 1]))
        for one in self._validators:
            self._configure(one)
        for index in range(len(self._validators)):
            self.revive(index)
        self._until_answering(range(len(self._validators)))

    def revive(self, index: int) -> None:
        """Start a validator's application and its engine."""
        one = self._validators[index]
        path = one.home / "application.sock"
        path.unlink(missing_ok=True)
        arguments = (str(path), str(self.folder / "configuration"))
        module = (sys.executable, "-m", "veilgrid.node.cometbft")
        one.application = self._spawned(
            (*module, *arguments, "--application", self._application), one.home / "application.log"
        )
        self._wait(path.exists, one, "its application does not listen")
        one.engine = self._spawned(
            (str(self._binary), "node", "--home", str(one.home)), one.home / "engine.log"
        )

    def kill(self, index: int) -> None:
        """End a validator at once, as a power cut would: its engine and its application."""
        one = self._validators[index]
        for process in (one.engine, one.application):
            if process is not None and process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                process.wait(10)
        one.engine = one.application = None

    def client(self, index: int = 0) -> "Rpc":
        """Return a connection to a validator."""
        return Rpc(self._validators[index].rpc_port)

    def wait_for(self, index: int, path: str, expected: bytes, timeout_s: float = 60.0) -> None:
        """Wait until a validator answers a question of the application so."""
        one = self._validators[index]

        def is_said() -> bool:
            try:
                with self.client(index) as client:
                    return client.query(path) == expected
            except (OSError, RunAborted):
                return False

        self._wait(is_said, one, f"{path} is not what was expected", timeout_s)

    def close(self) -> None:
        """End what still runs and remove the folder."""
        everything = [p for one in self._validators for p in (one.engine, one.application) if p]
        for process in everything:
            if process.poll() is None:
                process.terminate()
        for process in everything:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- inside ----------------------------------------------------------------------------------

    def _made(self, index: int, p2p_port: int, rpc_port: int) -> _Validator:
        home = self.folder / f"validator-{index + 1}"
        _asked(self._binary, "init", "validator", "--home", str(home))
        key = json.loads((home / "config/priv_validator_key.json").read_text())
        node_id = _asked(self._binary, "show-node-id", "--home", str(home)).strip()
        return _Validator(home, p2p_port, rpc_port, node_id, key["pub_key"])

    def _configure(self, one: _Validator) -> None:
        path = one.home / "config/genesis.json"
        genesis = json.loads(path.read_text())
        genesis["chain_id"] = chain_id_of(self._genesis)
        genesis["validators"] = [
            {"pub_key": other.public_key, "power": "1", "name": other.home.name}
            for other in self._validators
        ]
        genesis["genesis_time"] = "2026-01-01T00:00:00Z"
        path.write_text(json.dumps(genesis))
        peers = ",".join(
            f"{other.node_id}@127.0.0.1:{other.p2p_port}"
            for other in self._validators
            if other is not one
        )
        wanted = {
            section: {**(TUNED.get(section, {}) if self._is_tuned or section == "p2p" else {})}
            for section in ("", "rpc", "p2p", "consensus", "tx_index")
        }
        if not self._is_tuned:
            del wanted["p2p"]["flush_throttle_timeout"]
        wanted[""]["proxy_app"] = f'"unix://{one.home / "application.sock"}"'
        wanted["rpc"]["laddr"] = f'"tcp://127.0.0.1:{one.rpc_port}"'
        wanted["p2p"]["laddr"] = f'"tcp://127.0.0.1:{one.p2p_port}"'
        wanted["p2p"]["persistent_peers"] = f'"{peers}"'
        file = one.home / "config/config.toml"
        file.write_text(configured(file.read_text(), wanted))

    def _spawned(self, command: tuple[str, ...], log: Path) -> subprocess.Popen[bytes]:
        source = str(Path(__file__).resolve().parents[3])
        paths = [source, *filter(None, [os.environ.get("PYTHONPATH", "")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        with log.open("ab") as output:
            return subprocess.Popen(  # noqa: S603 - our interpreter, or the engine that was found
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def _until_answering(self, indices: range) -> None:
        for index in indices:
            one = self._validators[index]

            def is_answering(port: int = one.rpc_port) -> bool:
                try:
                    with Rpc(port) as client:
                        peers = int(client.ask("net_info")["n_peers"])
                except OSError:
                    return False
                return peers == len(self._validators) - 1

            self._wait(is_answering, one, "it does not answer or has not met its peers")

    def _wait(
        self, condition: Any, one: _Validator, what: str, timeout_s: float = _START_S
    ) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            ended = [p for p in (one.application, one.engine) if p and p.poll() is not None]
            if ended or time.monotonic() > deadline:
                ends = "\n".join(
                    _end_of(one.home / name) for name in ("application.log", "engine.log")
                )
                raise RunAborted(f"{one.home.name}: {what}\n{ends}")
            time.sleep(0.02)


class Rpc:
    """One connection to a validator of CometBFT on this machine."""

    def __init__(self, port: int, timeout_s: float = 60.0) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
        self._number = 0

    def ask(self, method: str, **parameters: Any) -> Any:
        """Call a method.

        Raises
        ------
        RunAborted
            The validator answers with an error.
        """
        self._number += 1
        asked = {"jsonrpc": "2.0", "id": self._number, "method": method, "params": parameters}
        self._connection.request(
            "POST", "/", json.dumps(asked), {"Content-Type": "application/json"}
        )
        answer = json.loads(self._connection.getresponse().read())
        if "error" in answer:
            raise RunAborted(f"{method}: {answer['error']}")
        return answer["result"]

    def commit(self, transaction: bytes) -> bytes:
        """Submit a transaction and wait for its block; return its result's data.

        Raises
        ------
        RunAborted
            It was refused.
        """
        text = base64.b64encode(transaction).decode()
        found = self.ask("broadcast_tx_commit", tx=text)
        for step in ("check_tx", "tx_result"):
            if found[step].get("code"):
                raise RunAborted(f"{step}: {found[step].get('log')}")
        return base64.b64decode(found["tx_result"].get("data") or "")

    def submit(self, transaction: bytes) -> None:
        """Hand a transaction over, and do not wait for its block."""
        text = base64.b64encode(transaction).decode()
        found = self.ask("broadcast_tx_sync", tx=text)
        if found.get("code"):
            raise RunAborted(f"check_tx: {found.get('log')}")

    def query(self, path: str, data: bytes = b"") -> bytes:
        """Ask the validator's application."""
        found = self.ask("abci_query", path=path, data=data.hex())["response"]
        if found.get("code"):
            raise RunAborted(f"{path}: {found.get('log')}")
        return base64.b64decode(found.get("value") or "")

    def __enter__(self) -> "Rpc":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


def configured(text: str, wanted: Mapping[str, Mapping[str, str]]) -> str:
    """Return a configuration file with some values replaced; each key must be there.

    Raises
    ------
    SetupError
        A key is missing: the file is of another version.
    """
    section, left = "", {name: dict(values) for name, values in wanted.items()}
    lines = []
    for line in text.splitlines():
        head = re.fullmatch(r"\[(\w+)\]", line.strip())
        section = head.group(1) if head else section
        key = line.partition("=")[0].strip()
        value = left.get(section, {}).pop(key, None) if "=" in line else None
        lines.append(line if value is None else f"{key} = {value}")
    missing = [f"{name}.{key}" for name, values in left.items() for key in values]
    if missing:
        raise SetupError(f"config.toml of CometBFT has no {', '.join(missing)}")
    return "\n".join(lines) + "\n"


def _asked(binary: Path, *arguments: str) -> str:
    done = subprocess.run(  # noqa: S603 - the engine that was found
        (str(binary), *arguments), capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise SetupError(f"{binary} {arguments[0]} failed: {done.stderr[-500:]}")
    return done.stdout


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def _end_of(path: Path) -> str:
    return path.read_text(errors="replace")[-1000:] if path.exists() else ""
