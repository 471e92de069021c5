"""A deployment on disk: who takes part, and what one process needs [node 11].

``deployment.toml`` is the same for everybody and holds nothing secret. Each process has a file of
its own beside it, ``nodes/NODE.toml``, which says where its keys, its state and its policy are.
``veilgrid init`` writes both, ``veilgrid node`` starts one process from its own file.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeVar

import msgspec

from veilgrid.config import load
from veilgrid.errors import ConfigError, Finding, SetupError
from veilgrid.machine import NodeId
from veilgrid.node.certificate import Credentials
from veilgrid.node.signing import load_signer
from veilgrid.node.transport import Peer
from veilgrid.secret import Secret
from veilgrid.signature import KEY_LENGTH, Signer

if TYPE_CHECKING:
    from veilgrid.node.attest.software import SoftwareProvider

Role = Literal["operator", "party", "site", "validator", "worker"]
ROLES: Final[tuple[Role, ...]] = ("operator", "party", "site", "validator", "worker")
SCHEMES: Final = ("masked", "sealed")
FORMAT: Final = 1
DEPLOYMENT: Final = "deployment.toml"
POLICY: Final = "attestation.toml"
VALIDATORS_MIN: Final = 4
PARTIES_MIN: Final = 3
PARTIES_MAX: Final = 7
PATIENCE_S: Final = 60.0
_NODE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HEX_KEY: Final = re.compile(r"[0-9a-f]{64}")

T = TypeVar("T", bound=msgspec.Struct)


class ProcessEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One process of a deployment, as everybody knows it.

    Attributes
    ----------
    port
        Where it listens; None for a process that only dials.
    verify_key : 64 hexadecimal digits
        Under which it signs.
    buses
        Of a process of sites: the sites for which it runs the edge devices.
    """

    node: str
    role: Role
    verify_key: str
    host: str = "127.0.0.1"
    port: int | None = None
    buses: tuple[str, ...] = ()


class DeploymentFile(msgspec.Struct, frozen=True, kw_only=True):
    """``deployment.toml``.

    Attributes
    ----------
    scenario
        Name of a bundled day, or a folder relative to this file; not read if there is a register.
    register
        What everybody knows of a sealed day, a file relative to this one; empty: every process
        reads the whole scenario.
    register_sha256
        Of that file, hexadecimal.
    degree
        Of the parties' shares: so many of them together learn nothing.
    run
        Of the same day; raised by everybody to plan it anew.
    attested
        Whether processes show evidence [attestation 8]: sites, workers and validators of a masked
        day; parties, sites and validators of a sealed one.
    patience_s
        Parties of a sealed day wait so long for sites and for each other, and three times as long
        for a party that is lost: longer than a process takes to start again.
    """

    format: int
    name: str
    scenario: str
    scheme: str = "masked"
    degree: int | None = None
    run: int = 1
    attested: bool = False
    patience_s: float = PATIENCE_S
    register: str = ""
    register_sha256: str = ""
    process: tuple[ProcessEntry, ...]


class NodeFile(msgspec.Struct, frozen=True, kw_only=True):
    """``nodes/NODE.toml``; paths are relative to it.

    Attributes
    ----------
    keys
        Folder with ``NODE.pem``, ``NODE.key``, ``NODE.ca.pem``, ``NODE.seed`` and
        ``NODE.journal-key``.
    state
        Folder of journal and audit log; made at the start.
    attestation
        The policy by which the evidence of others is judged.
    listen_host
        Address to listen on, where it differs from the host that others dial.
    data
        Of a process of sites of a sealed day with a register: scenario folder with the devices and
        loads of its own buses.
    software_root
        Root of software attestation, for development; empty for none [attestation 5].
    sealed
        Whether ``NODE.seed`` and ``NODE.journal-key`` are sealed, and ``NODE.key`` is encrypted,
        under that root [attestation 6].
    """

    format: int
    node: str
    deployment: str = f"../{DEPLOYMENT}"
    keys: str = "../keys"
    state: str
    attestation: str = f"../{POLICY}"
    listen_host: str = ""
    data: str = ""
    software_root: str = ""
    sealed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that one process of a deployment starts from.

    Attributes
    ----------
    me
        Its own entry.
    path
        The file that it was read from.
    """

    path: Path
    me: ProcessEntry
    deployment: DeploymentFile
    deployment_path: Path
    file: NodeFile

    @property
    def node(self) -> NodeId:
        """Its name."""
        return NodeId(self.me.node)

    @property
    def credentials(self) -> Credentials:
        """Its certificate, its key and whom it trusts."""
        keys = self.keys_folder
        node = self.me.node
        provider = self._provider()
        password = provider.password(node) if provider is not None else None
        return Credentials(
            keys / f"{node}.pem", keys / f"{node}.key", keys / f"{node}.ca.pem", password
        )

    @property
    def keys_folder(self) -> Path:
        """Folder of its keys."""
        return _beside(self.path, self.file.keys)

    @property
    def policy_path(self) -> Path:
        """The attestation policy."""
        return _beside(self.path, self.file.attestation)

    @property
    def journal_path(self) -> Path:
        """Its journal."""
        return _beside(self.path, self.file.state) / "journal"

    @property
    def audit_path(self) -> Path:
        """Its audit log."""
        return _beside(self.path, self.file.state) / "audit.jsonl"

    @property
    def listen_host(self) -> str:
        """Address to listen on."""
        return self.file.listen_host or self.me.host

    @property
    def scenario(self) -> str:
        """What to open: a bundled name, or the path of a folder."""
        folder = self.deployment_path.parent / self.deployment.scenario
        return str(folder) if folder.is_dir() else self.deployment.scenario

    @property
    def data_folder(self) -> Path:
        """Scenario folder of its own sites."""
        return _beside(self.path, self.file.data)

    @property
    def register_path(self) -> Path:
        """The register of a sealed day."""
        return _beside(self.deployment_path, self.deployment.register)

    def register_octets(self) -> bytes:
        """Return the register's contents, compared with its digest in the directory.

        Raises
        ------
        SetupError
            It cannot be read, or is another one than everybody's.
        """
        path = self.register_path
        try:
            octets = path.read_bytes()
        except OSError as error:
            advice = "copy it from who made the deployment"
            raise SetupError(f"{path} cannot be read ({error.strerror}); {advice}") from None
        if hashlib.sha256(octets).hexdigest() != self.deployment.register_sha256:
            raise SetupError(
                f"{path} is not the register that {self.deployment_path} names; copy the present "
                "one here"
            )
        return octets

    def signer(self) -> Signer:
        """Return the key under which it signs, checked against the directory."""
        path = self.keys_folder / f"{self.me.node}.seed"
        signer = Signer(self._secret(path)) if self.file.sealed else load_signer(path)
        if signer.verify_key.hex() != self.me.verify_key:
            raise SetupError(
                f"signature key {path} is not the one that {self.deployment_path} names for "
                f"{self.me.node}; copy the present {DEPLOYMENT} here"
            )
        return signer

    def journal_key(self) -> Secret[bytes]:
        """Return the key that encrypts its journal at rest."""
        path = self.keys_folder / f"{self.me.node}.journal-key"
        key = self._secret(path)
        if len(key.reveal_to("length check")) != KEY_LENGTH:
            raise SetupError(f"{path} must hold {KEY_LENGTH} octets")
        return key

    def peers(self, among: frozenset[str] = frozenset(ROLES)) -> tuple[Peer, ...]:
        """Return the others of these roles that can reach this process, or be reached by it."""
        return tuple(
            Peer(
                node=NodeId(one.node),
                role=one.role,
                host=one.host,
                port=one.port,
                verify_key=bytes.fromhex(one.verify_key),
            )
            for one in self.deployment.process
            if one.node != self.me.node
            and one.role in among
            and not (one.port is None and self.me.port is None)
        )

    def _secret(self, path: Path) -> Secret[bytes]:
        provider = self._provider()
        if provider is not None:
            return provider.unseal_file(path)
        try:
            return Secret(path.read_bytes())
        except OSError as error:
            raise SetupError(f"key {path} cannot be read ({error.strerror})") from None

    def _provider(self) -> "SoftwareProvider | None":
        return self.provider() if self.file.sealed else None

    def provider(self) -> "SoftwareProvider | None":
        """Return what quotes and seals for this process; None if its file names no root."""
        if not self.file.software_root:
            return None
        from veilgrid.node.attest.software import SoftwareProvider

        return SoftwareProvider.load(_beside(self.path, self.file.software_root))


def read_deployment(path: Path) -> DeploymentFile:
    """Read ``deployment.toml``.

    Raises
    ------
    ConfigError
        Every broken rule at once.
    """
    deployment = _read(path, DeploymentFile)
    findings = list(_broken(deployment, str(path)))
    if findings:
        raise ConfigError(findings)
    return deployment


def read_settings(path: Path) -> Settings:
    """Read the file of one process, and the directory that it names.

    Raises
    ------
    ConfigError
        Every broken rule of the first of the two files that has any.
    """
    file = _read(path, NodeFile)
    findings = []
    if file.format != FORMAT:
        findings.append(_wrong_format(str(path), file.format))
    if file.sealed and not file.software_root:
        problem = "is true, but software_root is empty"
        findings.append(Finding(f"{path}, key sealed", problem, "name the root"))
    if findings:
        raise ConfigError(findings)
    where = _beside(path, file.deployment)
    deployment = read_deployment(where)
    mine = [entry for entry in deployment.process if entry.node == file.node]
    if not mine:
        problem = f"is {file.node!r}, which {where} does not list"
        raise ConfigError([Finding(f"{path}, key node", problem, "add it with `veilgrid key new`")])
    return Settings(path=path, me=mine[0], deployment=deployment, deployment_path=where, file=file)


def count_findings(counts: dict[str, int], where: str) -> Iterator[Finding]:
    """Yield what is wrong with how many processes of each role there are."""
    validators, parties = counts.get("validator", 0), counts.get("party", 0)
    if validators and (validators < VALIDATORS_MIN or validators % 3 != 1):
        problem = f"{validators} validators; 3f + 1 are needed to bear f liars"
        nearest = max(VALIDATORS_MIN, validators // 3 * 3 + 1)
        yield Finding(where, problem, f"take {nearest}, or 0")
    if parties and not PARTIES_MIN <= parties <= PARTIES_MAX:
        problem = f"{parties} parties; secure computation takes {PARTIES_MIN} to {PARTIES_MAX}"
        yield Finding(where, problem, f"take {PARTIES_MIN}, or 0")
    if not counts.get("site"):
        yield Finding(where, "no process runs sites", "take at least 1")
    operators = counts.get("operator", 0)
    if operators > 1 or (validators and not operators):
        yield Finding(where, f"{operators} operators", "one process opens and closes the day")


def _broken(deployment: DeploymentFile, where: str) -> Iterator[Finding]:
    if deployment.format != FORMAT:
        yield _wrong_format(where, deployment.format)
    seen: set[str] = set()
    addresses: set[tuple[str, int]] = set()
    buses: set[str] = set()
    counts: dict[str, int] = {}
    for number, one in enumerate(deployment.process, 1):
        here = f"{where}, process {number}"
        counts[one.role] = counts.get(one.role, 0) + 1
        if not _NODE.fullmatch(one.node):
            problem = f"is {one.node[:70]!r}"
            advice = "1 to 64 letters, digits, '.', '_', '-'; first a letter or digit"
            yield Finding(f"{here}, key node", problem, advice)
        if one.node in seen:
            yield Finding(f"{here}, key node", f"{one.node} stands there twice")
        if not _HEX_KEY.fullmatch(one.verify_key):
            advice = "`veilgrid key show` prints it"
            yield Finding(f"{here}, key verify_key", "is not 64 hexadecimal digits", advice)
        if one.port is not None and not 0 < one.port < 65536:
            yield Finding(f"{here}, key port", f"is {one.port}, must be in 1 … 65535")
        elif one.port is not None and (one.host, one.port) in addresses:
            yield Finding(f"{here}, key port", f"{one.host}:{one.port} is taken already")
        if one.buses and one.role != "site":
            yield Finding(f"{here}, key buses", f"stands at a {one.role}; only sites have buses")
        for bus in buses & set(one.buses):
            yield Finding(f"{here}, key buses", f"bus {bus} belongs to another process already")
        seen.add(one.node)
        buses |= set(one.buses)
        if one.port is not None:
            addresses.add((one.host, one.port))
    yield from count_findings(counts, where)
    yield from _broken_register(deployment, where)
    if not 1 <= deployment.patience_s <= 3600:
        problem = f"is {deployment.patience_s:g}"
        yield Finding(f"{where}, key patience_s", problem, "1 … 3600 seconds")
    parties = counts.get("party", 0)
    if deployment.degree is not None and not 1 <= deployment.degree <= max(parties - 2, 0):
        problem = f"is {deployment.degree} with {parties} parties"
        yield Finding(f"{where}, key degree", problem, "1 … parties - 2, so that lies are noticed")


def _broken_register(deployment: DeploymentFile, where: str) -> Iterator[Finding]:
    if not deployment.register:
        return
    if deployment.scheme != "sealed":
        problem = f"is for sealed days, scheme is {deployment.scheme!r}"
        yield Finding(f"{where}, key register", problem, "remove it")
    if not _HEX_KEY.fullmatch(deployment.register_sha256):
        advice = "`sha256sum` of the register prints it"
        yield Finding(f"{where}, key register_sha256", "is not 64 hexadecimal digits", advice)


def _wrong_format(where: str, found: int) -> Finding:
    problem = f"is {found}; this version of veilgrid reads {FORMAT}"
    return Finding(f"{where}, key format", problem, "make the folder anew with `veilgrid init`")


def _read(path: Path, kind: type[T]) -> T:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SetupError(f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError([Finding(str(path), "is no UTF-8 text")]) from None
    return load(text, kind, str(path))


def _beside(path: Path, name: str) -> Path:
    return (path.parent / name).resolve()
