"""Machines of a masked day that show evidence and, of validators, ask for it [attestation 8]."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from veilgrid.machine import Machine, NodeId
from veilgrid.node.attest.admission import PolicyAssessor, quote_by
from veilgrid.node.attest.policy import development_policy
from veilgrid.node.attest.software import Provider, SoftwareProvider
from veilgrid.roles import ledger_day
from veilgrid.roles.ledger_admission import Asking, Attested
from veilgrid.roles.ledger_seat import Agreement
from veilgrid.secret import Randomness, SystemRandomness
from veilgrid.signature import Signs

POLICY: Final = "attestation.toml"
ROOT: Final = "software.root"


class Evidenced(msgspec.Struct, frozen=True):
    """What a process is told, with where its software root and the policy are.

    Attributes
    ----------
    inner
        msgpack of what the role's own factory takes.
    root, policy
        Files; the root is for development and is not hardware.
    measurement
        What the program is said to be, so that a checkout that is edited while processes start
        does not pass for several programs.
    """

    inner: bytes
    root: str
    policy: str
    measurement: bytes


class Files(NamedTuple):
    """Where a root and a policy for development are, and what that policy accepts."""

    root: Path
    policy: Path
    measurement: bytes

    def told(self, arguments: object) -> Evidenced:
        """Return what a process is told, with its role's own arguments inside."""
        inner = msgspec.msgpack.encode(arguments)
        return Evidenced(inner, str(self.root), str(self.policy), self.measurement)


def attested(
    machine: Machine, me: NodeId, agreement: Agreement, provider: Provider, policy: Path
) -> Machine:
    """Put evidence around a machine of a day; a validator's judges that of everybody else.

    Parameters
    ----------
    machine
        What the process does otherwise.
    me
        Its name.
    agreement
        Holds the key under which it signs.
    provider
        Makes this process's evidence.
    policy
        File by which validators judge; read again when it changes.
    """
    quote = quote_by(provider, time.time)
    if str(me) not in agreement.validators:
        return Attested(machine, me, agreement, quote)
    assessor = PolicyAssessor(policy, SystemRandomness(), time.time)
    return Asking(machine, me, agreement, quote, assessor)


def software_files(folder: Path) -> Files:
    """Make a development root and a policy that accepts it and this program: not hardware.

    What that is worth is in [attestation 8.3].
    """
    provider = SoftwareProvider.create(folder / ROOT)
    text = development_policy(provider.root_key, provider.measurement, "veilgrid, as it runs here")
    (folder / POLICY).write_text(text, encoding="utf-8")
    return Files(folder / ROOT, folder / POLICY, provider.measurement)


def build_validator(
    me: NodeId,
    arguments: Evidenced,
    records: Sequence[Any],
    signer: Signs,
    verify_keys: Mapping[NodeId, bytes],
) -> Machine:
    """Make a validator that asks everybody for evidence."""
    inner = msgspec.msgpack.decode(arguments.inner, type=ledger_day.ValidatorArguments)
    machine = ledger_day.build_validator(me, inner, records, signer, verify_keys)
    return _around(machine, me, inner.agreement, arguments, verify_keys)


def build_worker(
    me: NodeId,
    arguments: Evidenced,
    records: Sequence[Any],
    signer: Signs,
    verify_keys: Mapping[NodeId, bytes],
) -> Machine:
    """Make a worker that shows evidence."""
    agreement = msgspec.msgpack.decode(arguments.inner, type=Agreement)
    machine = ledger_day.build_worker(me, agreement, records, signer, verify_keys)
    return _around(machine, me, agreement, arguments, verify_keys)


def build_group(
    me: NodeId,
    arguments: Evidenced,
    records: Sequence[Any],
    signer: Signs,
    randomness: Randomness,
    verify_keys: Mapping[NodeId, bytes],
) -> Machine:
    """Make the edge devices of one process, which show evidence."""
    inner = msgspec.msgpack.decode(arguments.inner, type=ledger_day.GroupArguments)
    machine = ledger_day.build_group(me, inner, records, signer, randomness, verify_keys)
    return _around(machine, me, inner.agreement, arguments, verify_keys)


def _around(
    machine: Machine,
    me: NodeId,
    agreement: Agreement,
    arguments: Evidenced,
    verify_keys: Mapping[NodeId, bytes],
) -> Machine:
    known = ledger_day.with_keys(agreement, verify_keys)
    provider = SoftwareProvider.load(Path(arguments.root), arguments.measurement)
    return attested(machine, me, known, provider, Path(arguments.policy))
