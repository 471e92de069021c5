"""Another day for the processes of a deployment on disk: same keys, another scenario [node 15]."""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from veilgrid.errors import Finding, InputError, SetupError
from veilgrid.node.certificate import write_private, write_public
from veilgrid.node.settings import DEPLOYMENT, DeploymentFile, read_deployment

REGISTER: Final = "register.day"
DATA: Final = "sites"


@dataclass(frozen=True, slots=True, kw_only=True)
class NextDay:
    """What is to be planned next.

    Attributes
    ----------
    scenario
        Its reference in the directory.
    buses
        All sites.
    register, data_of
        Of a sealed day, as in :class:`~veilgrid.node.scaffold.Plan`; else empty and None.
    """

    scenario: str
    buses: tuple[str, ...]
    register: bytes = b""
    data_of: Callable[[tuple[str, ...]], Mapping[str, bytes]] | None = None


def take_up(folder: Path, day: NextDay) -> DeploymentFile:
    """Write another day into a deployment folder; return its directory as it is then.

    ``run`` goes up, so that no journal of an earlier day of that name is taken up. The directory is
    replaced last: a process that is started in between refuses the register and says so.

    Raises
    ------
    ConfigError
        The directory is wrong.
    InputError
        Every bus that the day and the directory do not share.
    SetupError
        A file cannot be written.
    """
    path = folder / DEPLOYMENT
    before = read_deployment(path)
    findings = list(_strangers(before, day, str(path)))
    if findings:
        raise InputError(findings)
    keys = {"scenario": _text(day.scenario), "run": str(before.run + 1)}
    if day.register:
        digest = hashlib.sha256(day.register).hexdigest()
        keys |= {"register": _text(REGISTER), "register_sha256": _text(digest)}
    try:
        if day.register and day.data_of is not None:
            for one in before.process:
                if one.buses:
                    write_data(folder, one.node, day.data_of(one.buses))
            write_public(folder / REGISTER, day.register)
        text = _with_keys(path.read_text(encoding="utf-8"), keys)
        write_public(path, text.encode())
    except OSError as error:
        raise SetupError(f"{folder} cannot be written: {error.strerror or error}") from error
    return read_deployment(path)


def write_data(folder: Path, node: str, files: Mapping[str, bytes]) -> None:
    """Write the folder of a process's own sites, which only its owner can read.

    One that is there stays beside it as ``NODE.before``: it may hold what its owner alone knows.
    """
    home = folder / DATA
    home.mkdir(mode=0o700, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{node}.", dir=home))
    try:
        for name, octets in files.items():
            write_private(fresh / name, octets)
        if (home / node).exists():
            shutil.rmtree(home / f"{node}.before", ignore_errors=True)
            (home / node).replace(home / f"{node}.before")
        fresh.replace(home / node)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _strangers(before: DeploymentFile, day: NextDay, where: str) -> Iterator[Finding]:
    owned = {bus for one in before.process for bus in one.buses}
    for bus in (bus for bus in day.buses if bus not in owned):
        problem = f"no process runs the edge device of bus {bus}"
        yield Finding(f"{where}, key buses", problem, "add it with `veilgrid key new --role site`")
    for bus in sorted(owned - set(day.buses)):
        problem = f"bus {bus} is not in scenario {day.scenario}"
        yield Finding(f"{where}, key buses", problem, "take it out of the process's list")


def _with_keys(text: str, keys: Mapping[str, str]) -> str:
    """Set keys of the first table; everything else, comments too, stays as it is."""
    head, mark, rest = text.partition("[[process]]")
    for key, value in keys.items():
        line = re.compile(rf"^{key}\s*=\s*(\"(?:[^\"\\]|\\.)*\"|[^#\n]*?)([ \t]*(?:#.*)?)$", re.M)
        found = line.search(head)
        if found:
            start, end = found.span()
            head = f"{head[:start]}{key} = {value}{found[2]}{head[end:]}"
        else:
            head = f"{head.rstrip()}\n{key} = {value}\n\n"
    return head + mark + rest


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
