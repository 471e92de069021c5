"""A few sealed days of the fuzzer (sealed_fuzz.py); `make fuzz-sealed` tries many."""

import pytest

from veilgrid.machine import NodeId, Received
from veilgrid.roles.sealed.day import SITES
from veilgrid.roles.sealed.message import Stopped

from .sealed_fuzz import trial
from .sealed_world import World

SEEDS = (2, 6, 10, 15)
"""Any weather; corrupt parties that bend all they say; sites that say twice that they are back."""


@pytest.mark.parametrize("seed", SEEDS)
def test_a_sealed_day_ends_as_it_should_whatever_its_seed_brings(seed: int) -> None:
    """Replay: ``python -m tests.roles.sealed.sealed_fuzz --first SEED --seeds 1``."""
    assert trial(seed) == []


def test_sites_do_not_end_without_a_name_where_a_corrupt_party_speaks_first() -> None:
    """Its word and one honest one are more than ``degree``, but blame nobody alike."""
    sites = World(1).machines[SITES]
    day = sites.agreement.day  # type: ignore[attr-defined]
    words = [("party-1", ["party-3"]), ("party-2", ["party-1"]), ("party-3", ["party-1"])]
    effects = [
        sites.handle(Received(NodeId(name), Stopped(day, 0, "silence", culprits)))
        for name, culprits in words
    ]
    assert [len(one) for one in effects] == [0, 1, 1]
    assert effects[-1][0].outcome.culprits == ["party-1"]  # type: ignore[union-attr]
