"""Keys of a deployment's folder: made, replaced while processes run, and looked at [node 12]."""

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from veilgrid.errors import Finding, InputError, SetupError
from veilgrid.node.certificate import VALID_DAYS, Authority, write_private, write_public
from veilgrid.node.settings import (
    DEPLOYMENT,
    DeploymentFile,
    ProcessEntry,
    read_deployment,
    read_settings,
)
from veilgrid.node.signing import fresh_signer
from veilgrid.secret import Secret
from veilgrid.signature import KEY_LENGTH, Signer

if TYPE_CHECKING:
    from cryptography import x509

    from veilgrid.node.attest.software import SoftwareProvider

Step = Literal["introduce", "switch", "retire"]
RENEW_DAYS: Final = 7.0
_DAY_S: Final = 86_400
_CURRENT, _NEXT, _FORMER = "authority", "authority-next", "authority-former"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyState:
    """What lies on disk for one process; nothing of it is secret.

    Attributes
    ----------
    days_left
        Until its certificate ends; None without a certificate.
    fingerprint
        SHA-256 of its certificate, hexadecimal.
    problems
        Why it could not be used, or not be trusted.
    """

    node: str
    role: str
    address: str
    verify_key: str
    days_left: float | None
    fingerprint: str
    is_sealed: bool
    problems: tuple[str, ...]


class KeyFolder:
    """The keys of a deployment in one folder: ``deployment.toml``, ``keys``, ``authority``.

    On a host that holds only its own process's keys, :meth:`states` works as well.
    """

    def __init__(self, folder: Path, provider: "SoftwareProvider | None" = None) -> None:
        self.folder = folder
        self.keys = folder / "keys"
        self._provider = provider

    @classmethod
    def open(cls, folder: Path) -> "KeyFolder":
        """Return the keys of an existing deployment; sealed ones are opened with its root."""
        if not (folder / DEPLOYMENT).is_file():
            advice = "`veilgrid init` makes such a folder"
            raise InputError([Finding(str(folder), f"holds no {DEPLOYMENT}", advice)])
        files = sorted((folder / "nodes").glob("*.toml"))
        settings = read_settings(files[0]) if files else None
        is_sealed = settings is not None and settings.file.sealed
        return cls(folder, settings.provider() if settings and is_sealed else None)

    def deployment(self) -> DeploymentFile:
        """Return the directory."""
        return read_deployment(self.folder / DEPLOYMENT)

    def make(self, node: str, role: str, valid_days: float = VALID_DAYS) -> str:
        """Make all keys of one process; return its public signature key in hexadecimal."""
        authority = Authority.load(self.folder / _CURRENT)
        signer = fresh_signer()
        self.keys.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._write_secret(self.keys / f"{node}.seed", signer.seed)
        journal_key = Secret(os.urandom(KEY_LENGTH))
        self._write_secret(self.keys / f"{node}.journal-key", journal_key)
        authority.issue(
            self.keys,
            node,
            role,
            verify_key=signer.verify_key,
            valid_days=valid_days,
            password=self._password(node),
            trusted=self._trusted(),
        )
        return signer.verify_key.hex()

    def rotate(self, nodes: Sequence[str] = (), valid_days: float = VALID_DAYS) -> list[str]:
        """Give processes new TLS keys and certificates; signature keys stay.

        Parameters
        ----------
        nodes
            Which; none means all.
        valid_days
            Of the new certificates.

        Returns
        -------
        list of str
            The processes that have to take them up (SIGHUP).
        """
        authority = Authority.load(self.folder / _CURRENT)
        chosen = self._chosen(nodes)
        for one in chosen:
            self._issue(authority, one, valid_days)
        return [one.node for one in chosen]

    def rotate_signatures(self, nodes: Sequence[str]) -> list[str]:
        """Give processes new signature keys and certificates, and name them in the directory.

        Raises
        ------
        InputError
            A validator is among them: the ledger knows it by its key, so its membership changes.
        """
        chosen = self._chosen(nodes)
        advice = "let it leave and join again at a checkpoint"
        findings = [
            Finding(one.node, "is a validator, which the ledger knows by its key", advice)
            for one in chosen
            if one.role == "validator"
        ]
        if findings:
            raise InputError(findings)
        authority = Authority.load(self.folder / _CURRENT)
        path = self.folder / DEPLOYMENT
        text = path.read_text(encoding="utf-8")
        for one in chosen:
            signer = fresh_signer()
            self._write_secret(self.keys / f"{one.node}.seed", signer.seed)
            text = text.replace(one.verify_key, signer.verify_key.hex())
            authority.issue(
                self.keys,
                one.node,
                one.role,
                verify_key=signer.verify_key,
                password=self._password(one.node),
                trusted=self._trusted(),
            )
        write_public(path, text.encode())
        return [one.node for one in chosen]

    def replace_authority(self, step: Step) -> list[str]:
        """Take one of the three steps by which an authority is replaced while all run.

        After ``introduce`` everybody trusts both; after ``switch`` certificates are the new one's;
        after ``retire`` the old one is trusted no more. Between two steps every process takes up
        its files.
        """
        everyone = list(self.deployment().process)
        former, following = self.folder / _FORMER, self.folder / _NEXT
        if step == "introduce":
            self._require(not following.exists() and not former.exists(), "is under way already")
            Authority.create().save(following)
        elif step == "switch":
            self._require(following.exists(), "was not introduced")
            self._require(not former.exists(), "is not retired yet")
            (self.folder / _CURRENT).rename(former)
            following.rename(self.folder / _CURRENT)
            authority = Authority.load(self.folder / _CURRENT)
            for one in everyone:
                self._issue(authority, one, VALID_DAYS)
        else:
            self._require(former.exists(), "was not switched")
            shutil.rmtree(former)
        for one in everyone:
            write_public(self.keys / f"{one.node}.ca.pem", self._trusted())
        return [one.node for one in everyone]

    def states(self, now_s: float, nodes: Sequence[str] = ()) -> list[KeyState]:
        """Look at the keys that lie here.

        Parameters
        ----------
        now_s : seconds since 1970
            To tell how long certificates last.
        nodes
            Which; none means all.
        """
        return [self._state(one, now_s) for one in self._chosen(nodes)]

    # -- inside ----------------------------------------------------------------------------------

    def _chosen(self, nodes: Iterable[str]) -> list[ProcessEntry]:
        listed = {one.node: one for one in self.deployment().process}
        wanted = list(nodes) or list(listed)
        known = ", ".join(listed)
        findings = [
            Finding(node, f"is not in {self.folder / DEPLOYMENT}", f"known: {known}")
            for node in wanted
            if node not in listed
        ]
        if findings:
            raise InputError(findings)
        return [listed[node] for node in wanted]

    def _issue(self, authority: Authority, one: ProcessEntry, valid_days: float) -> None:
        authority.issue(
            self.keys,
            one.node,
            one.role,
            verify_key=bytes.fromhex(one.verify_key),
            valid_days=valid_days,
            password=self._password(one.node),
            trusted=self._trusted(),
        )

    def _password(self, node: str) -> Secret[bytes] | None:
        return None if self._provider is None else self._provider.password(node)

    def _trusted(self) -> bytes:
        """Return all authorities that count at present, in PEM."""
        folders = (self.folder / name for name in (_CURRENT, _NEXT, _FORMER))
        return b"".join(
            (folder / "ca.pem").read_bytes() for folder in folders if (folder / "ca.pem").exists()
        )

    def _require(self, is_so: bool, problem: str) -> None:
        if not is_so:
            advice = "the steps are introduce, switch, retire, in this order"
            raise InputError([Finding(str(self.folder), f"a new authority {problem}", advice)])

    def _write_secret(self, path: Path, secret: Secret[bytes]) -> None:
        if self._provider is not None:
            self._provider.seal_file(path, secret)
        else:
            write_private(path, secret.reveal_to(path))

    def _state(self, one: ProcessEntry, now_s: float) -> KeyState:
        from veilgrid.node.attest.software import is_sealed

        problems, days_left, fingerprint = [], None, ""
        found = _certificate(self.keys / f"{one.node}.pem")
        if found is None:
            problems.append("certificate is missing or unreadable")
        else:
            days_left = (found.not_valid_after_utc.timestamp() - now_s) / _DAY_S
            fingerprint = _fingerprint(found)
            problems += _certificate_problems(found, one, days_left)
        for suffix in ("key", "seed", "journal-key"):
            path = self.keys / f"{one.node}.{suffix}"
            if not path.is_file():
                problems.append(f"{path.name} is missing")
            elif path.stat().st_mode & 0o077:
                problems.append(f"{path.name} can be read by others; chmod 600")
        seed = self.keys / f"{one.node}.seed"
        sealed = is_sealed(seed)
        if seed.is_file() and not sealed and not _is_seed_of(seed, one.verify_key):
            problems.append(f"{seed.name} is not the key that {DEPLOYMENT} names")
        address = "dials only" if one.port is None else f"{one.host}:{one.port}"
        return KeyState(
            node=one.node,
            role=one.role,
            address=address,
            verify_key=one.verify_key,
            days_left=days_left,
            fingerprint=fingerprint,
            is_sealed=sealed,
            problems=tuple(problems),
        )


def _certificate(path: Path) -> "x509.Certificate | None":
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return None


def _fingerprint(certificate: "x509.Certificate") -> str:
    from cryptography.hazmat.primitives import hashes

    return certificate.fingerprint(hashes.SHA256()).hex()


def _certificate_problems(
    certificate: "x509.Certificate", one: ProcessEntry, days_left: float
) -> list[str]:
    from cryptography import x509

    problems = []
    if days_left <= 0:
        problems.append("certificate has expired; veilgrid key rotate")
    elif days_left < RENEW_DAYS:
        problems.append(f"certificate ends in {days_left:.1f} days; veilgrid key rotate")
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        uris = names.value.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []
    if f"veilgrid://{one.role}/{one.node}" not in uris:
        problems.append(f"certificate does not name {one.role} {one.node}")
    if f"veilgrid-key:{one.verify_key}" not in uris:
        problems.append("certificate vouches for another signature key")
    return problems


def _is_seed_of(path: Path, verify_key: str) -> bool:
    try:
        return Signer(Secret(path.read_bytes())).verify_key.hex() == verify_key
    except SetupError:
        return False
