"""What is learnt from a round, for the weights of the next one [risk 3.3]."""

from collections.abc import Mapping, Sequence
from typing import Any

from veilgrid.risk.trust import Conduct, Standing, TrustSettings

_CONDUCTS = {
    "invalid": Conduct.INVALID,
    "contradictory": Conduct.INVALID,
    "unreadable": Conduct.INVALID,
    "missing": Conduct.MISSING,
}


def conduct_of(names: Sequence[str], result: Mapping[str, Any]) -> dict[str, Conduct]:
    """Return what each source did, from what the committee opened.

    Parameters
    ----------
    names
        Of all sources, in order.
    result
        Of :func:`~veilgrid.risk.aggregate.answer_steps`, of a round that was watched.
    """
    flags: Mapping[str, str] = result["flags"]
    return {
        name: _CONDUCTS[flags[name]] if name in flags else Conduct(level)
        for name, level in zip(names, result["conduct"], strict=True)
    }


def standings_after(
    standings: Mapping[str, Standing], conducts: Mapping[str, Conduct], settings: TrustSettings
) -> dict[str, Standing]:
    """Return everybody's standing once a round is over; who was not asked keeps its own."""
    after = dict(standings)
    for name, conduct in conducts.items():
        after[name] = standings.get(name, Standing()).after(conduct, settings)
    return after


def reliabilities_of(
    names: Sequence[str],
    standings: Mapping[str, Standing],
    settings: TrustSettings,
    given: Sequence[float | None],
) -> list[float]:
    """Return the reliability of each source before a round: its past, times what is given."""
    return [
        standings.get(name, Standing()).reliability(settings.floor) * (1.0 if at is None else at)
        for name, at in zip(names, given, strict=True)
    ]
