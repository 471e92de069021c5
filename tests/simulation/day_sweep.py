"""Sweep seeds of small masked days in storms: ``day_sweep.py --seeds 300``.

Each day has four crashes of its own, of every role, beside those of the weather; it must converge
to the optimum's cost with nobody excluded. A line for each seed that does not, and the exit code 1.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from small_day import small_day

from veilgrid.admm.reference import central
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.sim.day import simulate_day
from veilgrid.sim.day_faults import Crash, Faults, WeatherFaults

STORM = WeatherFaults(
    loss=0.03, repeat=0.03, reorder=0.03, partition=0.1, crash=0.002, clock_skew=0.1
)
NODES = ("operator", "validator-1", "worker-1", "site-1")


def fault(day: Day, optimum: float, seed: int) -> str:
    """Return what is wrong with one day; empty if nothing is."""
    crashes = tuple(Crash(node=node, at_step=3 + k) for k, node in enumerate(NODES))
    found = simulate_day(day, seed, Faults(weather=STORM, crash=crashes))
    result = found.result
    if found.outcome != "converged" or found.violations or result is None:
        return f"{found.outcome} after {found.step_count} steps: {', '.join(found.violations)}"
    if result.excluded:
        return f"excluded {', '.join(result.excluded)}"
    if result.cost is None or abs(result.cost - optimum) > 2e-4 * abs(optimum):
        return f"cost {result.cost}, optimum {optimum}"
    return ""


def main() -> int:
    """Sweep and say what was found."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seeds", type=int, default=300)
    options.add_argument("--first", type=int, default=0)
    chosen = options.parse_args()
    day = small_day()
    optimum = day.cost(central(day, Limits.of(day.network)).setpoints)
    faults = 0
    for seed in range(chosen.first, chosen.first + chosen.seeds):
        what = fault(day, optimum, seed)
        faults += bool(what)
        if what or seed % 10 == 9:
            print(f"seed {seed}: {what or 'so far so good'}", flush=True)
    print(f"{chosen.seeds} days in storms, {faults} with a fault")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
