"""Many seeds, one function; a failing seed says how to replay it [node 8.5].

A simulation is a top-level function of a seed that builds a world, runs it, and returns it. Run
one seed again with

    python -m veilgrid.sim package.module:function --seed 7
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from veilgrid.sim.checker import Violation
from veilgrid.sim.world import World

Simulation = Callable[[int], World]


@dataclass(frozen=True, slots=True)
class Report:
    """What a sweep went through."""

    seed_count: int
    step_count: int
    crash_count: int
    frames_sent: int


def sweep(simulation: Simulation, seeds: Iterable[int]) -> Report:
    """Run ``simulation`` for each seed.

    Raises
    ------
    Violation
        At the first seed that fails; it names the seed, the commit and the command to replay.
    """
    seed_count = step_count = crash_count = frames_sent = 0
    for seed in seeds:
        try:
            world = simulation(seed)
            world.finish()
        except AssertionError as error:
            raise Violation(
                f"{error}\n  seed={seed} commit={commit()}\n  replay: "
                f"{replay_command(simulation, seed)}"
            ) from error
        seed_count += 1
        step_count += world.step_count
        crash_count += world.crash_count
        frames_sent += world.frames_sent
    return Report(seed_count, step_count, crash_count, frames_sent)


def replay_command(simulation: Simulation, seed: int) -> str:
    """Return the command that runs ``simulation`` once with ``seed``."""
    code = simulation.__code__
    module = simulation.__module__
    command = f"python -m veilgrid.sim {module}:{simulation.__qualname__} --seed {seed}"
    if module.startswith("veilgrid."):
        return command
    folder = Path(code.co_filename).resolve().parents[module.count(".")]
    return f"{command} --import-path {os.path.relpath(folder)}"


def commit() -> str:
    """Return the commit that this code was checked out from, or ``unknown``."""
    for folder in Path(__file__).resolve().parents:
        head = folder / ".git" / "HEAD"
        if head.is_file():
            text = head.read_text().strip()
            if not text.startswith("ref: "):
                return text[:12]
            reference = folder / ".git" / text.removeprefix("ref: ")
            return reference.read_text().strip()[:12] if reference.is_file() else "unknown"
    return "unknown"
