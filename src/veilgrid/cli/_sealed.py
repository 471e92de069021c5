"""A sealed day with every party as a process of its own, connected with mutual TLS."""

from dataclasses import dataclass

from veilgrid.admm.outcome import Coordination
from veilgrid.errors import RunAborted
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.node.local import ProcessResult, ProcessSpec, run_processes
from veilgrid.node.wiring import Wiring
from veilgrid.roles.sealed.day import SETTINGS, Driven, PublicDay, coordination_of, costs_alone
from veilgrid.roles.sealed.deployment import (
    Agreed,
    PartyArguments,
    PayerArguments,
    SiteArguments,
    pack_public,
    pack_site,
)
from veilgrid.roles.sealed.keys import PAYER_NODE, SITES, Keys
from veilgrid.roles.sealed.message import Collected, DayEnded, Stopped
from veilgrid.roles.sealed.sites_kept import SiteOutcome
from veilgrid.secret import Randomness, SystemRandomness


@dataclass(frozen=True)
class SealedRun:
    """A sealed day by processes.

    Attributes
    ----------
    seconds
        From the start of the machines to the last site's result; processes were up before.
    octets_a_party
        Most that any party sent.
    peak_megabytes
        Largest resident size of any process.
    rounds, trips
        Of secure computation; and messages that waited for one another, one way each.
    processor_seconds
        Of the busiest party, and of the process of sites; each with about 1.5 s of start-up.
    """

    coordination: Coordination
    seconds: float
    octets_a_party: int
    peak_megabytes: float
    rounds: int
    trips: int
    processor_seconds: tuple[float, float]


def run_sealed(
    day: Day,
    limits: Limits,
    *,
    party_count: int = 3,
    degree: int = 1,
    timeout_s: float = 900.0,
    wiring: Wiring | None = None,
) -> SealedRun:
    """Plan a day under `sealed` by processes: parties, one with all sites, and the payer.

    Raises
    ------
    RunAborted
        The parties ended without a result; names the culprit where one is known.
    """
    public = PublicDay.of(day, limits, SETTINGS)
    specs = sealed_specs(day, public, SystemRandomness(), party_count, degree)
    results = run_processes(
        specs,
        timeout_s=timeout_s,
        start_timeout_s=120,
        outcomes=DayEnded | Stopped | SiteOutcome | Collected,
        wiring=wiring,
    )
    driven = Driven(
        {one.node: list(one.outcomes) for one in results},
        sum(one.frames_sent for one in results),
        sum(one.octets_sent for one in results),
    )
    coordination = coordination_of(day, driven, SITES, public.register.unit, limits)
    parties = [one for one in results if one.node not in (SITES, PAYER_NODE)]
    ended = _ended(parties)
    return SealedRun(
        coordination=coordination,
        seconds=max(one.seconds for one in results),
        octets_a_party=max(one.octets_sent for one in parties),
        peak_megabytes=max(one.peak_memory_octets for one in results) / 1e6,
        rounds=ended.round_count,
        trips=ended.trip_count,
        processor_seconds=(
            max(one.processor_seconds for one in parties),
            max(one.processor_seconds for one in results if one.node == SITES),
        ),
    )


def _ended(parties: list[ProcessResult]) -> DayEnded:
    for one in parties:
        for outcome in one.outcomes:
            if isinstance(outcome, DayEnded):
                return outcome
    raise RunAborted("no party ended the day")


def sealed_specs(
    day: Day,
    public: PublicDay,
    randomness: Randomness,
    party_count: int,
    degree: int,
    patience_ns: int = 20_000_000_000,
) -> list[ProcessSpec]:
    """Return the processes of a day: one a party, one with all sites, and the payer."""
    keys = Keys.drawn(party_count, len(day.sites), randomness)
    agreement = keys.agreement(b"day " + randomness.octets(16).hex().encode(), degree)
    agreed, packed = Agreed.of(agreement), pack_public(public)
    messages = "veilgrid.roles.sealed.message:Message"
    parties = [
        ProcessSpec(
            node=name,
            factory="veilgrid.roles.sealed.deployment:build_party",
            messages=messages,
            arguments=PartyArguments(agreed, packed, bytes(box), patience_ns),
            records="veilgrid.roles.sealed.message:Record",
        )
        for name, box in zip(agreement.parties, keys.boxes, strict=True)
    ]
    told = SiteArguments(
        agreed,
        packed,
        {bus: pack_site(site) for bus, site in enumerate(day.sites)},
        costs_alone(day),
        {bus: seed.reveal_to("its own process") for bus, seed in keys.site_seeds.items()},
        {bus: one.salt_key.reveal_to("its own process") for bus, one in keys.sites.items()},
    )
    sites = ProcessSpec(
        node=SITES,
        factory="veilgrid.roles.sealed.deployment:build_sites",
        messages=messages,
        arguments=told,
        records="veilgrid.roles.sealed.sites_kept:SiteRecord",
        role="site",
    )
    seed = keys.payer.seed.reveal_to("its own process")
    payer = ProcessSpec(
        node=PAYER_NODE,
        factory="veilgrid.roles.sealed.deployment:build_payer",
        messages=messages,
        arguments=PayerArguments(agreed, public.register.unit, seed),
        records="veilgrid.roles.sealed.payer:PayerRecord",
        role="operator",
    )
    return [*parties, sites, payer]
