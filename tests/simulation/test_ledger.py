"""The ledger in any weather beside any liar: nobody honest forks, loses or waits for ever."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "ledger"))

from ledger_mutations import MUTATIONS
from ledger_runs import (
    SIMULATIONS,
    ledger_world,
    with_all_honest,
    with_lying_checkpoint,
    with_twins,
)
from ledger_world import REPLICAS

from veilgrid.sim import CALM, Violation, World, replay_command, sweep

ROOT = Path(__file__).parents[2]
SEEDS = 120


@pytest.mark.parametrize("simulation", SIMULATIONS, ids=lambda s: s.__name__)
def test_honest_replicas_agree_lose_nothing_and_serve_everybody(
    simulation: Callable[[int], World],
) -> None:
    """A fork pays somebody twice; a stall stops the day for all."""
    report = sweep(simulation, range(SEEDS))
    assert report.seed_count == SEEDS
    assert report.step_count > 100 * SEEDS


@pytest.mark.parametrize(("simulation", "seed"), [(with_lying_checkpoint, 100_282)])
def test_seeds_that_were_red_once_stay_green(simulation: Callable[[int], World], seed: int) -> None:
    """100282: a batch of an earlier view was left out of the journal after a state transfer."""
    sweep(simulation, [seed])


def test_the_storm_is_one() -> None:
    """Simulations in which nothing goes wrong prove nothing."""
    views = crashes = transfers = 0
    for seed in range(60):
        world = ledger_world("lying-checkpoint", seed, requests=20)
        crashes += world.crash_count
        for node in REPLICAS:
            kinds = [type(record).__name__ for record in world.records(node)]
            views += kinds.count("Entered")
            transfers += kinds.count("Installed")
    assert crashes > 60
    assert views > 30
    assert transfers > 5


CAUGHT_BY = {
    "quorum 2 of 4": ("two-faced", "twins"),
    "vote before log": ("honest",),
    "prepared certificate ignored": ("honest", "silent"),
    "sequence table skipped": ("repeating",),
    "checkpoint not checked": ("lying-checkpoint",),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_broken_replicas_are_found(mutation: str) -> None:
    """Checkers that cannot fail are decoration: each known mistake turns a seed red."""
    requests = 20 if mutation == "checkpoint not checked" else 6
    with MUTATIONS[mutation]():
        for adversary in CAUGHT_BY[mutation]:
            found = 0
            for seed in range(150):
                try:
                    ledger_world(adversary, seed, requests=requests)
                except Violation:
                    found += 1
                    break
            assert found, f"{mutation} is not seen beside {adversary}"


def test_a_quorum_of_two_survives_honest_weather() -> None:
    """Why the cast is not optional: without a liar this mistake stays unseen on a calm network."""
    with MUTATIONS["quorum 2 of 4"]():
        for seed in range(30):
            ledger_world("honest", seed, weather=CALM)


@pytest.mark.parametrize("late", [0, 1])
def test_a_crash_at_any_persist_point_loses_nothing(late: int) -> None:
    """A power cut may come just before or just after each record is durable."""
    from ledger_world import answered, checkers, execution, ledger_builds

    from veilgrid.ledger.message import MESSAGES

    for node in (REPLICAS[0], REPLICAS[2]):
        for point in range(40):
            world = World(
                ledger_builds(4),
                point,
                CALM,
                messages=MESSAGES,
                checkers=checkers(REPLICAS),
                crash_points={node: [2 * point + late]},
            )

            def is_over(world: World) -> bool:
                stands = {execution(world, replica) for replica in REPLICAS}
                return answered(world, 4) and len(stands) == 1

            assert world.run(20_000, is_over), (node, point)


def test_a_run_repeats_exactly() -> None:
    """Otherwise a failing seed could not be looked at twice."""
    assert with_twins(5).digest == with_twins(5).digest
    assert with_all_honest(5).digest != with_all_honest(6).digest


def test_a_failing_seed_says_how_to_replay_it() -> None:
    """Whoever sees it red needs one command."""
    assert replay_command(with_twins, 7).startswith(
        "python -m veilgrid.sim ledger_runs:with_twins --seed 7 --import-path"
    )


def test_the_command_that_a_failing_seed_names_takes_the_same_steps() -> None:
    """A command that replays something else would send whoever debugs astray."""
    command = shlex.split(replay_command(with_twins, 5))
    done = subprocess.run(
        [sys.executable, *command[1:]], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["digest"] == with_twins(5).digest


def test_a_sweep_that_finds_something_names_seed_commit_and_command() -> None:
    """The nightly run ends with that text; nobody is there to look at it."""
    with MUTATIONS["vote before log"](), pytest.raises(Violation) as caught:
        sweep(with_all_honest, range(150))
    text = str(caught.value)
    found = re.search(r"seed=(\d+) commit=\S+", text)
    assert found is not None
    assert replay_command(with_all_honest, int(found[1])) in text


def test_nights_are_long_enough() -> None:
    """10,000 seeds and a million steps beside twins, by what `make nightly` passes on."""
    import ledger_sweep

    recipe = (ROOT / "Makefile").read_text(encoding="utf-8")
    seeds = re.search(r"^SEEDS \?= (\d+)$", recipe, flags=re.MULTILINE)
    assert seeds is not None
    assert int(seeds[1]) * len(SIMULATIONS) >= 10_000
    nightly = recipe[recipe.index("nightly:") :].split("\n\n")[0]
    assert "ledger_sweep.py --seeds $(SEEDS) --first-seed" in nightly
    assert "--twins-steps" not in nightly
    assert ledger_sweep.TWINS_STEPS >= 1_000_000
