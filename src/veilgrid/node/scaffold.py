"""The folder of a new deployment: directory, files of its processes, keys, policy [node 11]."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Final

import msgspec

from veilgrid.errors import Finding, InputError, SetupError
from veilgrid.node.attest.policy import POLICY_HEAD, development_policy
from veilgrid.node.attest.software import SoftwareProvider
from veilgrid.node.certificate import VALID_DAYS, Authority, write_private, write_public
from veilgrid.node.keys import KeyFolder
from veilgrid.node.next_day import DATA, REGISTER, write_data
from veilgrid.node.settings import (
    DEPLOYMENT,
    FORMAT,
    POLICY,
    NodeFile,
    ProcessEntry,
    Role,
    count_findings,
    read_settings,
)

_PORT_MAX: Final = 65_535
_ROOT: Final = "keys/software.root"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to scaffold.

    Attributes
    ----------
    buses
        All sites of the scenario, in its order.
    counts
        Processes by role.
    base_port
        Of the first process that listens; the others follow.
    is_software_accepted
        Whether the policy lets software evidence pass, for development.
    software_root
        Root of software attestation, made if it is not there; None puts it beside the keys. Not
        used if software is not accepted and nothing is sealed.
    is_sealed
        Whether secret keys are sealed under that root.
    scheme
        ``masked`` or ``sealed``; empty: as the processes allow.
    register
        Of a sealed day: what everybody may know; empty: every process reads the whole scenario.
    data_of
        With a register: the scenario files that the owner of these buses needs, by name.
    """

    name: str
    scenario: str
    buses: tuple[str, ...]
    counts: dict[Role, int]
    host: str = "127.0.0.1"
    base_port: int = 47_000
    valid_days: float = VALID_DAYS
    is_software_accepted: bool = True
    software_root: Path | None = None
    is_sealed: bool = False
    scheme: str = ""
    register: bytes = b""
    data_of: Callable[[tuple[str, ...]], Mapping[str, bytes]] | None = None

    @property
    def planned_by(self) -> str:
        """The scheme: that of the processes there are, if none is named."""
        return self.scheme or ("masked" if self.counts.get("validator") else "sealed")


def create(folder: Path, plan: Plan) -> list[ProcessEntry]:
    """Write a new deployment folder, completely or not at all; return its processes.

    Raises
    ------
    InputError
        Every number that cannot be.
    SetupError
        The folder exists and is not empty, or cannot be written.
    """
    _check(plan)
    target = folder.absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SetupError(f"{target} exists already; remove it or choose another folder")
    part: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        processes = _fill(part, plan)
        if target.exists():
            target.rmdir()
        part.rename(target)
    except OSError as error:
        raise SetupError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        if part is not None and part.exists():
            shutil.rmtree(part)
    return processes


def add(folder: Path, entry: ProcessEntry, valid_days: float) -> ProcessEntry:
    """Add one process to a deployment: keys, its file, its entry in the directory.

    ``verify_key`` of ``entry`` is replaced by that of the new key.
    """
    keys = KeyFolder.open(folder)
    present = keys.deployment().process
    findings = []
    if any(one.node == entry.node for one in present):
        findings.append(Finding(entry.node, "is in the deployment already", "use `key rotate`"))
    taken = {(one.host, one.port) for one in present if one.port is not None}
    if (entry.host, entry.port) in taken:
        findings.append(Finding("--port", f"{entry.host}:{entry.port} is taken already"))
    owned = {bus for one in present for bus in one.buses}
    findings += [
        Finding("--bus", f"{bus} belongs to another process already")
        for bus in entry.buses
        if bus in owned
    ]
    if (entry.role == "site") != bool(entry.buses):
        findings.append(Finding("--bus", "is for processes of role site, which need it"))
    if entry.role in ("validator", "operator"):
        advice = "validators come as 3f + 1 and the operator is one: make a folder with `init`"
        findings.append(Finding("--role", f"{entry.role} cannot be added alone", advice))
    if findings:
        raise InputError(findings)
    verify_key = keys.make(entry.node, entry.role, valid_days)
    made = ProcessEntry(
        node=entry.node,
        role=entry.role,
        verify_key=verify_key,
        host=entry.host,
        port=entry.port,
        buses=entry.buses,
    )
    like = read_settings(folder / "nodes" / f"{present[0].node}.toml").file
    state = f"../state/{made.node}"
    is_owner = bool(made.buses and keys.deployment().register)
    data = f"../{DATA}/{made.node}" if is_owner else ""
    file = msgspec.structs.replace(like, node=made.node, state=state, data=data, listen_host="")
    _write(folder / "nodes" / f"{made.node}.toml", _node_text(file))
    with (folder / DEPLOYMENT).open("a", encoding="utf-8") as directory:
        directory.write("\n" + _entry_text(made))
    return made


def _check(plan: Plan) -> None:
    findings = list(count_findings({str(k): v for k, v in plan.counts.items()}, "processes"))
    findings += [
        Finding(f"--{role}s", f"is {count}", "0 or more")
        for role, count in plan.counts.items()
        if count < 0
    ]
    sites, buses = plan.counts.get("site", 0), len(plan.buses)
    if sites > buses:
        problem = f"{sites} processes for the {buses} sites of {plan.scenario}"
        findings.append(Finding("--sites", problem, f"take {buses} or fewer"))
    is_masked = plan.planned_by == "masked"
    if is_masked and plan.counts.get("validator") and not plan.counts.get("worker"):
        findings.append(Finding("--workers", "nobody solves what is masked", "take 1 or more"))
    if plan.counts.get("worker") and not plan.counts.get("validator"):
        findings.append(Finding("--validators", "nobody checks what workers solve", "take 4"))
    needed: Role = "validator" if plan.scheme == "masked" else "party"
    if plan.scheme and not plan.counts.get(needed):
        findings.append(Finding("--scheme", f"{plan.scheme} without processes of role {needed}"))
    if not plan.counts.get("party") and not plan.counts.get("validator"):
        findings.append(Finding("processes", "neither parties nor validators", "take 3 parties"))
    listening = sum(count for role, count in plan.counts.items() if role != "site")
    if not 1024 <= plan.base_port <= _PORT_MAX - listening:
        allowed = f"1024 … {_PORT_MAX - listening}"
        findings.append(Finding("--base-port", f"is {plan.base_port}, must be in {allowed}"))
    if not 0 < plan.valid_days <= 3650:
        findings.append(Finding("--valid-days", f"is {plan.valid_days:g}, must be in 1 … 3650"))
    if findings:
        raise InputError(findings)


def _fill(folder: Path, plan: Plan) -> list[ProcessEntry]:
    Authority.create(f"{plan.name} development authority"[:64]).save(folder / "authority")
    has_root = plan.is_software_accepted or plan.is_sealed
    provider = _provider(folder, plan) if has_root else None
    keys = KeyFolder(folder, provider if plan.is_sealed else None)
    processes = [
        ProcessEntry(
            node=one.node,
            role=one.role,
            verify_key=keys.make(one.node, one.role, plan.valid_days),
            host=one.host,
            port=one.port,
            buses=one.buses,
        )
        for one in _entries(plan)
    ]
    _write(folder / DEPLOYMENT, _deployment_text(plan, processes))
    _write(folder / POLICY, _policy_text(plan, provider))
    for one in processes:
        _write(folder / "nodes" / f"{one.node}.toml", _node_text(_node_file(one, plan)))
        if one.buses and plan.register and plan.data_of is not None:
            write_data(folder, one.node, plan.data_of(one.buses))
    if plan.register:
        write_public(folder / REGISTER, plan.register)
    write_private(folder / ".gitignore", b"keys/\nauthority*/\nsites/\nstate/\n")
    _write(folder / "README.md", _readme(plan, processes))
    return processes


def _entries(plan: Plan) -> list[ProcessEntry]:
    entries, port = [], plan.base_port
    listening: tuple[Role, ...] = ("operator", "validator", "worker", "party")
    for role in listening:
        for number in range(1, plan.counts.get(role, 0) + 1):
            node = role if role == "operator" else f"{role}-{number}"
            entries.append(
                ProcessEntry(node=node, role=role, verify_key="", host=plan.host, port=port)
            )
            port += 1
    sites = plan.counts.get("site", 0)
    for number, buses in enumerate(_parts(plan.buses, sites), 1):
        entries.append(ProcessEntry(node=f"site-{number}", role="site", verify_key="", buses=buses))
    return entries


def _parts(buses: Sequence[str], count: int) -> list[tuple[str, ...]]:
    edges = [len(buses) * number // count for number in range(count + 1)]
    return [tuple(buses[a:b]) for a, b in pairwise(edges)]


def _deployment_text(plan: Plan, processes: Sequence[ProcessEntry]) -> str:
    parties = plan.counts.get("party", 0)
    lines = [
        "# Who takes part: the same for everybody, nothing is secret. docs/protocol/node.md 11",
        f"format = {FORMAT}",
        f"name = {_text(plan.name)}",
        f"scenario = {_text(plan.scenario)}",
        f"scheme = {_text(plan.planned_by)}",
    ]
    if plan.register:
        digest = hashlib.sha256(plan.register).hexdigest()
        lines.append(f"register = {_text(REGISTER)}  # all that is read; the scenario is not")
        lines.append(f"register_sha256 = {_text(digest)}")
    if plan.is_software_accepted:
        lines.append("attested = true  # by software: not hardware. docs/protocol/attestation.md 8")
    if parties:
        lines.append(f"degree = {(parties - 1) // 2}  # so many parties together learn nothing")
    return "\n".join(lines) + "\n\n" + "\n".join(_entry_text(one) for one in processes)


def _entry_text(one: ProcessEntry) -> str:
    lines = ["[[process]]", f"node = {_text(one.node)}", f"role = {_text(one.role)}"]
    if one.port is not None:
        lines += [f"host = {_text(one.host)}", f"port = {one.port}"]
    lines.append(f"verify_key = {_text(one.verify_key)}")
    if one.buses:
        lines.append(f"buses = {json.dumps(one.buses, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def _node_text(file: NodeFile) -> str:
    lines = [
        "# What this process needs; paths are relative to this file. docs/protocol/node.md 11",
        f"format = {FORMAT}",
    ]
    texts = ("node", "deployment", "keys", "state", "data", "attestation", "listen_host")
    lines += [f"{key} = {_text(getattr(file, key))}" for key in texts if getattr(file, key)]
    if file.software_root:
        lines.append(f"software_root = {_text(file.software_root)}  # not hardware")
        lines.append(f"sealed = {'true' if file.sealed else 'false'}")
    return "\n".join(lines) + "\n"


def _node_file(one: ProcessEntry, plan: Plan) -> NodeFile:
    node, root = one.node, ""
    if plan.is_software_accepted or plan.is_sealed:
        root = f"../{_ROOT}" if plan.software_root is None else str(plan.software_root.absolute())
    state = f"../state/{node}"
    return NodeFile(
        format=FORMAT,
        node=node,
        state=state,
        data=f"../{DATA}/{node}" if one.buses and plan.register else "",
        software_root=root,
        sealed=plan.is_sealed,
    )


def _provider(folder: Path, plan: Plan) -> SoftwareProvider:
    path = plan.software_root or folder / _ROOT
    return SoftwareProvider.load(path) if path.exists() else SoftwareProvider.create(path)


def _policy_text(plan: Plan, provider: SoftwareProvider | None) -> str:
    if not plan.is_software_accepted or provider is None:
        return POLICY_HEAD + "accept_software = false\n"
    name = f"veilgrid {version('veilgrid')}, as installed here"
    return development_policy(provider.root_key, provider.measurement, name)


def _readme(plan: Plan, processes: Sequence[ProcessEntry]) -> str:
    rows = "\n".join(
        f"| {one.node} | {one.role} | {f'{one.host}:{one.port}' if one.port else 'dials only'} "
        f"| {len(one.buses) or ''} |"
        for one in processes
    )
    local = (
        "All processes run on this machine."
        if plan.host == "127.0.0.1"
        else f"Processes that listen do so on {plan.host}."
    )
    return f"""# Deployment {plan.name}

Scenario: {plan.scenario}. {local}

| process | role | address | sites |
|---|---|---|---|
{rows}

## What lies here

- `deployment.toml`: who takes part; copy it to every host.
- `nodes/NODE.toml`: what one process needs; goes to its host.
- `keys/`: keys and certificates. Each host gets only the files of its own processes.
- `authority/`: signs certificates. **Take `authority/ca.key` off the hosts** and keep it offline.
- `attestation.toml`: by what evidence of other processes is judged.
- `state/`: journals (encrypted) and audit logs; made when processes start.
{_about_data(plan)}
## Next

1. Several hosts: set `host` and `port` of each process in `deployment.toml`.
2. `veilgrid key show .` looks at every key and certificate.
3. `veilgrid node nodes/NODE.toml` starts one process, each in a terminal or on a host of its own:
   they wait for each other, plan the day and go on serving. `kill -9` one and start it again.
4. `veilgrid init . --next-day --scenario SCENARIO` writes the next day; copy, start again.
5. Certificates end after {plan.valid_days:g} days. `veilgrid key rotate .` makes new ones; send the
   processes SIGHUP, and they take them up while they run.

The authority here is for development and small deployments: whoever has its key can join as
anybody. Attestation by software, if the policy accepts it, is **not hardware** and proves nothing
about a machine.
"""


def _about_data(plan: Plan) -> str:
    if not plan.register:
        return (
            "- Every process reads the whole scenario: give it to nobody who must not see bids.\n"
        )
    return f"""- `{REGISTER}`: network, tariff, kinds of devices at each bus, how far their power
  reaches. Copy it to every host. Nobody reads more of the day, but for a process's own sites.
- `{DATA}/NODE/`: devices, forecasts, costs and loads of one process's own sites as a scenario
  folder. **It goes to that host and nowhere else: remove the copy here.** Its owner may change
  every number in it before the day begins, not while it runs; which devices there are is
  registered.
"""


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
