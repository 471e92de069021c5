"""A scenario: one horizon on one radial network, as tables list it; folder in and out."""

from dataclasses import dataclass, field

from veilgrid.grid.day import Day
from veilgrid.grid.device import Device
from veilgrid.grid.horizon import Horizon
from veilgrid.grid.network import Floats, Network
from veilgrid.grid.site import Site


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What a scenario folder says, in its own units.

    Attributes
    ----------
    load_p_mw, load_q_mvar : (bus, interval), MW and Mvar
        In the network's bus order.
    buy, sell : (interval,), currency/MWh
        Tariff at the substation, ``buy >= sell``.
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

    def day(self) -> Day:
        """Convert to what the algorithms work on, per-unit."""
        network, horizon = self.network, self.horizon
        base, hours = network.base_mva, horizon.hours
        sites = tuple(
            Site.of(
                bus.name,
                index,
                [device for device in self.devices if device.bus == bus.name],
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
