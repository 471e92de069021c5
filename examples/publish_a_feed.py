"""Publish a running total of a district's evening without giving away any household.

Household profiles of SimBench (extra ``simbench``), moved in time; the budget file pays once.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import simbench

COUNT, WIDEST_KW = 500, 5.0
PROFILES = Path(simbench.__file__).parent / "networks/1-complete_data-mixed-all-0-sw"
KINDS = [f"H0-{kind}_pload" for kind in "ABCGL"]
FEED = ["--function", "sum", "--feed", "6", "--per-day", "6", "--epsilon", "1"]


def main() -> None:
    """Publish one quarter of an hour, then the next; the first stays as it was said."""
    loads = pd.read_csv(PROFILES / "LoadProfile.csv", sep=";", usecols=KINDS)[KINDS].to_numpy()
    with tempfile.TemporaryDirectory() as name:
        files = [write(Path(name) / f"{at}.csv", loads, at) for at in (1, 2)]
        first, both = (published(path, Path(name) / "budget") for path in files)
    truth = 0.0
    for one in both["feed"]["each"]:
        truth += sum(household_kw(loads, k, one["interval"]) for k in range(COUNT))
        print(f"{one['total']:5.0f} kW, noise {one['noise_sd']:.0f} kW, really {truth:5.0f} kW")
        assert abs(one["total"] - truth) <= 6 * one["noise_sd"]
    print(f"epsilon {both['privacy']['budget']['spent_epsilon']:.2f} is spent")
    assert both["feed"]["each"][0] == first["feed"]["each"][0]


def household_kw(loads, k: int, interval: int) -> float:
    """Return what a household draws: some day's evening of some profile."""
    return min(4.0 * float(loads[96 * (k % 300) + 70 + k % 4 + interval, k % 5]), WIDEST_KW)


def write(path: Path, loads, interval: int) -> Path:
    """Write one interval; bounds are what each household's fuse lets through."""
    found = [f"{household_kw(loads, k, interval):.4f}" for k in range(COUNT)]
    rows = ["source,value,tier,lower,upper,interval"]
    rows += [f"{k},{load},household,0,5,{interval}" for k, load in enumerate(found)]
    path.write_text("\n".join(rows) + "\n")
    return path


def published(path: Path, budget: Path) -> dict:
    """Run the verb for the interval of a file."""
    command = [sys.executable, "-m", "veilgrid", "aggregate", str(path), "--json", *FEED]
    command += ["--budget", str(budget), "--day", "2016-01-18"]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)  # noqa: S603


if __name__ == "__main__":
    main()
