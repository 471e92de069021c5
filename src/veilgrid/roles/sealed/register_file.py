"""The register of a sealed day as a file, and what of a site's own data has to fit it [node 14].

The file holds what everybody knows before gate closure (:class:`PublicDay`) and the day's name.
With it parties, validators and the payer need no scenario, and a process of sites only its own.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from veilgrid.errors import ConfigError, Finding
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.grid.scenario import Scenario
from veilgrid.roles.sealed.bid import Shape
from veilgrid.roles.sealed.day import SETTINGS, PublicDay
from veilgrid.roles.sealed.deployment import pack_public, unpack_public

FORMAT: Final = 1

_PARTS: Final = {
    "rows": "constraints of devices",
    "columns": "constraints of devices",
    "is_equality": "constraints of devices",
    "has_lower": "which rows are bounded below",
    "has_upper": "which rows are bounded above",
    "reactive_rows": "which devices move reactive power",
    "reactive_columns": "which devices move reactive power",
    "curved": "which devices have a quadratic cost",
}


class _File(msgspec.Struct, frozen=True, array_like=True):
    format: int
    day: str
    base_mva: float
    public: bytes


@dataclass(frozen=True, slots=True)
class Registered:
    """What the register says.

    Attributes
    ----------
    day
        Its name.
    base_mva
        Of all per-unit numbers.
    """

    day: str
    base_mva: float
    public: PublicDay

    @classmethod
    def of(cls, scenario: Scenario) -> "Registered":
        """Take from a scenario what everybody may know.

        Raises
        ------
        ConfigError
            Nothing is to be planned.
        """
        day = scenario.day()
        if not day.flexible:
            problem = "no site has a choice"
            raise ConfigError([Finding(scenario.name, problem, "there is nothing to plan")])
        public = PublicDay.of(day, Limits.of(day.network), SETTINGS)
        return cls(day.name, scenario.network.base_mva, public)

    @property
    def buses(self) -> tuple[str, ...]:
        """Names of all buses, in the network's order."""
        return tuple(shape.name for shape in self.public.shapes)

    def octets(self) -> bytes:
        """Return the contents of the file; the same from the same register."""
        packed = pack_public(self.public)
        return msgspec.msgpack.encode(_File(FORMAT, self.day, self.base_mva, packed))

    @classmethod
    def read(cls, octets: bytes, where: str) -> "Registered":
        """Read the contents of a file whose digest was compared.

        Raises
        ------
        ConfigError
            It is no register, or one of another version.
        """
        advice = "the operator makes it anew with `veilgrid init --scheme sealed`"
        try:
            file = msgspec.msgpack.decode(octets, type=_File)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise ConfigError([Finding(where, "is no register of a day", advice)]) from None
        if file.format != FORMAT:
            problem = f"has format {file.format}; this version of veilgrid reads {FORMAT}"
            raise ConfigError([Finding(where, problem, advice)])
        return cls(file.day, file.base_mva, unpack_public(file.public))


def unfit(scenario: Scenario, day: Day, own: Collection[str], known: Registered) -> Iterator[str]:
    """Yield what of a scenario of these buses' owner does not fit the register.

    Names, times, tariff and kinds of devices are everybody's and have to be the same. Costs, sizes,
    forecasts and loads are the owner's alone.
    """
    names = tuple(str(site.name) for site in day.sites)
    register = known.public.register
    if names != known.buses:
        yield "its buses are not those of the register, or stand in another order"
        return
    if day.horizon.interval_count != register.interval_count:
        count = day.horizon.interval_count
        yield f"it has {count} intervals, the register {register.interval_count}"
        return
    if scenario.network.base_mva != known.base_mva:
        yield f"base_mva is {scenario.network.base_mva:g}, in the register {known.base_mva:g}"
        return
    if day.name != known.day:
        yield f"it is called {day.name!r}, the registered day {known.day!r}"
    for name, here, there in (("buy", day.buy, register.buy), ("sell", day.sell, register.sell)):
        apart = np.flatnonzero(~np.isclose(here, there, rtol=1e-9, atol=0.0))
        if len(apart):
            yield f"tariff.csv, column {name}: other than registered in interval {apart[0]}"
    for site, shape in zip(day.sites, known.public.shapes, strict=True):
        if str(site.name) in own:
            for part in _other_parts(Shape.of(site), shape):
                yield f"devices.csv, bus {site.name}: other than registered: {part}"


def _other_parts(here: Shape, there: Shape) -> list[str]:
    sizes = [(s.row_count, s.variable_count, s.interval_count) for s in (here, there)]
    if sizes[0] != sizes[1] or _entries(here) != _entries(there):
        return ["number or kinds of devices"]
    parts = [
        words
        for name, words in _PARTS.items()
        if not np.array_equal(getattr(here, name), getattr(there, name))
    ]
    return list(dict.fromkeys(parts))


def _entries(shape: Shape) -> list[tuple[int, int, float]]:
    own = shape.inject_p.tocoo()
    return sorted(zip(own.row.tolist(), own.col.tolist(), own.data.tolist(), strict=True))
