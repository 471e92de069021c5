"""The long simulation of the ledger: ``python tests/ledger/ledger_sweep.py --seeds 1000``.

Every member of the cast by that many seeds, then Twins until so many steps are done. The first
violation ends it with the command that replays it.
"""

import argparse
import sys
import time

from ledger_runs import SIMULATIONS, with_twins

from veilgrid.sim import Violation, sweep

_CHUNK = 50
TWINS_STEPS = 1_000_000


def main() -> int:
    """Run the sweep; 1 at the first violation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=850, help="for each member of the cast")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--twins-steps", type=int, default=TWINS_STEPS)
    arguments = parser.parse_args()
    began, seeds, steps, crashes, twins_steps = time.perf_counter(), 0, 0, 0, 0
    try:
        for simulation in SIMULATIONS:
            report = sweep(
                simulation, range(arguments.first_seed, arguments.first_seed + arguments.seeds)
            )
            seeds += report.seed_count
            steps += report.step_count
            crashes += report.crash_count
            if simulation is with_twins:
                twins_steps = report.step_count
            print(f"{simulation.__name__}: {report}", flush=True)
        first = arguments.first_seed + arguments.seeds
        while twins_steps < arguments.twins_steps:
            report = sweep(with_twins, range(first, first + _CHUNK))
            first += _CHUNK
            seeds += report.seed_count
            steps += report.step_count
            twins_steps += report.step_count
    except Violation as violation:
        print(violation)
        return 1
    seconds = time.perf_counter() - began
    print(
        f"{seeds} simulations, {steps} steps, {crashes} crashes, {twins_steps} steps beside twins, "
        f"no violation, {seconds:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
