"""A scenario: one horizon on one radial network, as tables list it; folder in and out.

The format is described in docs/scenario-format.md. Nothing here opens a path: a folder is anything
with ``joinpath(name)`` whose result can read or write bytes, e.g. ``pathlib.Path`` or what
``importlib.resources.files`` returns.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from veilgrid.errors import Finding, ScenarioError
from veilgrid.grid._read import FILES, read_files
from veilgrid.grid._write import written
from veilgrid.grid.day import Day
from veilgrid.grid.device import Device
from veilgrid.grid.horizon import Horizon
from veilgrid.grid.network import Floats, Network
from veilgrid.grid.site import Site

if TYPE_CHECKING:
    import pandas as pd

BUNDLED_DAY = "simbench-rural-2016-01-18"
"""Name of the bundled scenario that commands take when none is given."""


class ReadableFile(Protocol):
    """A file of a folder."""

    def is_file(self) -> bool:
        """Whether it exists and can be read."""
        ...

    def read_bytes(self) -> bytes:
        """Return its contents."""
        ...


class ReadableFolder(Protocol):
    """A folder to read from."""

    def joinpath(self, name: str, /) -> ReadableFile:
        """Return the file of that name, whether it exists or not."""
        ...


class WritableFile(Protocol):
    """A file of a folder."""

    def write_bytes(self, data: bytes, /) -> int:
        """Replace its contents."""
        ...


class WritableFolder(Protocol):
    """A folder to write into."""

    def joinpath(self, name: str, /) -> WritableFile:
        """Return the file of that name, whether it exists or not."""
        ...


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What a scenario folder says, in its own units.

    Attributes
    ----------
    load_p_mw, load_q_mvar : (bus, interval), MW and Mvar
        In the network's bus order.
    buy, sell : (interval,), currency/MWh
        Tariff at the substation, ``buy >= sell``.
    remarks
        What a person should know about the files and what does not forbid the scenario.
    """

    name: str
    description: str = ""
    horizon: Horizon
    currency: str
    network: Network
    devices: tuple[Device, ...]
    load_p_mw: Floats = field(repr=False)
    load_q_mvar: Floats = field(repr=False)
    buy: Floats = field(repr=False)
    sell: Floats = field(repr=False)
    remarks: tuple[Finding, ...] = field(default=(), repr=False)

    @classmethod
    def read(cls, folder: ReadableFolder) -> "Scenario":
        """Read a scenario folder.

        Raises
        ------
        ScenarioError
            With every broken rule, each naming file, row and column. A row is the line of the
            file, the header being row 1.
        """
        contents: dict[str, bytes] = {}
        unreadable: list[Finding] = []
        for name in FILES:
            file = folder.joinpath(name)
            try:
                if file.is_file():
                    contents[name] = file.read_bytes()
            except OSError as error:
                unreadable.append(Finding(name, f"cannot be read: {error.strerror or error}"))
        if not contents and not unreadable:
            problem = f"holds none of the files of a scenario: {', '.join(FILES)}"
            unreadable.append(Finding("folder", problem, "see docs/scenario-format.md"))
        if unreadable:
            raise ScenarioError(unreadable)
        return cls.from_files(contents)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> "Scenario":
        """Read a scenario from the contents of its files, by file name.

        Raises
        ------
        ScenarioError
            As :meth:`read`.
        """
        parts, notes = read_files(files)
        if parts is None:
            raise ScenarioError(notes.findings)
        return cls(**parts, remarks=tuple(notes.remarks))

    def files(self) -> dict[str, bytes]:
        """Return the contents of the scenario's files, by file name."""
        return {name: text.encode() for name, text in written(self).items()}

    def write(self, folder: WritableFolder) -> None:
        """Write the scenario's files into an existing folder."""
        for name, contents in self.files().items():
            folder.joinpath(name).write_bytes(contents)

    @classmethod
    def from_tables(cls, tables: "Mapping[str, pd.DataFrame]") -> "Scenario":
        """Build a scenario from pandas tables as :meth:`tables` returns them.

        Raises
        ------
        ScenarioError
            As :meth:`read`; rows are counted as if the tables were written to files.
        """
        from veilgrid.grid._tables import files_of_tables

        return cls.from_files(files_of_tables(tables))

    def tables(self) -> "dict[str, pd.DataFrame]":
        """Return the scenario as pandas tables: ``scenario`` and one for each CSV file.

        ``scenario`` has the settings in its column ``value``, by key. Keys are file names without
        their ending; an index stands for the file's first column.
        """
        from veilgrid.grid._tables import tables_of_files

        return tables_of_files(self.files())

    def own_part(self, buses: Collection[str]) -> "Scenario":
        """Return what the owner of these buses needs: their devices and loads, nobody else's.

        Network, horizon and tariff stay; loads of other buses are zero.
        """
        is_own = np.array([bus.name in buses for bus in self.network.buses])[:, np.newaxis]
        return replace(
            self,
            devices=tuple(device for device in self.devices if device.bus in buses),
            load_p_mw=np.where(is_own, self.load_p_mw, 0.0),
            load_q_mvar=np.where(is_own, self.load_q_mvar, 0.0),
            remarks=(),
        )

    def day(self) -> Day:
        """Convert to what the algorithms work on, per-unit."""
        network, horizon = self.network, self.horizon
        base, hours = network.base_mva, horizon.hours
        devices_at: dict[str, list[Device]] = {}
        for device in self.devices:
            devices_at.setdefault(device.bus, []).append(device)
        sites = tuple(
            Site.of(
                bus.name,
                index,
                devices_at.get(bus.name, []),
                horizon,
                base,
                self.load_p_mw[index] / base,
                self.load_q_mvar[index] / base,
            )
            for index, bus in enumerate(network.buses)
        )
        return Day(
            name=self.name,
            horizon=horizon,
            network=network,
            sites=sites,
            buy=self.buy * (hours * base),
            sell=self.sell * (hours * base),
            currency=self.currency,
        )
