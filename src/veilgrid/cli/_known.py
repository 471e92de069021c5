"""What a process of a sealed day has read before it begins, and from where [node 14].

With a register in the directory, everybody reads that, and a process of sites the scenario of its
own buses besides. Without one every process reads the whole scenario and keeps its role's part.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from veilgrid.errors import ConfigError, Finding, InputError
from veilgrid.grid.day import Day
from veilgrid.grid.site import Site
from veilgrid.node.settings import Settings
from veilgrid.report.folders import open_scenario
from veilgrid.roles.sealed.day import PublicDay, costs_alone
from veilgrid.roles.sealed.register_file import Registered, unfit


@dataclass(frozen=True, slots=True)
class Known:
    """What one process knows of a sealed day.

    Attributes
    ----------
    sites, alone
        Its own, by bus, and what they would pay alone; empty but for a process of sites.
    """

    registered: Registered
    sites: Mapping[int, Site]
    alone: Mapping[int, float]

    @property
    def day(self) -> str:
        """Name of the day."""
        return self.registered.day

    @property
    def public(self) -> PublicDay:
        """What everybody knows."""
        return self.registered.public

    @property
    def buses(self) -> tuple[str, ...]:
        """Names of all buses."""
        return self.registered.buses


def known_of(settings: Settings) -> Known:
    """Read what this process may know.

    Raises
    ------
    InputError
        All that is wrong with the scenario, or how it does not fit the register.
    SetupError
        The register cannot be read or is another one than everybody's.
    """
    if not settings.deployment.register:
        scenario = open_scenario(settings.scenario)
        return _known(settings, Registered.of(scenario), scenario.day())
    path = str(settings.register_path)
    registered = Registered.read(settings.register_octets(), path)
    if settings.me.role != "site":
        return Known(registered, {}, {})
    if not settings.file.data:
        problem = "is not there: the folder with the devices and loads of its own sites"
        raise ConfigError(
            [Finding(f"{settings.path}, key data", problem, "see docs/protocol/node.md 14")]
        )
    folder = settings.data_folder
    scenario = open_scenario(folder)
    day = scenario.day()
    findings = [
        Finding(str(folder), problem, "the register is everybody's: only own numbers may differ")
        for problem in unfit(scenario, day, settings.me.buses, registered)
    ]
    if findings:
        raise InputError(findings)
    return _known(settings, registered, day)


def _known(settings: Settings, registered: Registered, day: Day) -> Known:
    if settings.me.role != "site":
        return Known(registered, {}, {})
    own = [bus for bus, name in enumerate(registered.buses) if name in settings.me.buses]
    alone = costs_alone(day)
    return Known(registered, {bus: day.sites[bus] for bus in own}, {bus: alone[bus] for bus in own})
