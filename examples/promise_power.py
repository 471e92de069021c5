"""Tell how much frequency reserve a fleet of batteries can promise, common failures included.

Each household's battery is as large as its yearly peak on the bundled SimBench feeder asks for. A
cold spell takes every tenth battery down for an hour in fifty. Capacities stay in shares.
"""

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import veilgrid

DAY = "simbench-rural-2016-01-18"
COPIES = 4  # Feeders of this kind in the region.


def main() -> None:
    """Size batteries by loads, and ask the committee at two confidences."""
    scenario = veilgrid.open_scenario(DAY)
    peaks_kw = [1000 * float(peak) for peak in scenario.load_p_mw.max(axis=1)]
    fleet = [round(0.5 * peak, 1) for peak in peaks_kw if peak > 1.0] * COPIES
    with tempfile.TemporaryDirectory() as name:
        path, shocks = Path(name) / "fleet.csv", Path(name) / "shocks.csv"
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["device", "capacity_kw", "failure_probability", "cold"])
            for number, size in enumerate(fleet):
                usual = 0.01 + 0.02 * (number % 3)
                rows.writerow(
                    [f"battery {number}", size, usual, 0.9 if number % 10 == 0 else usual]
                )
        shocks.write_text("scenario,probability\ncold,0.02\n")
        for confidence in ("0.95", "0.99"):
            command = [sys.executable, "-m", "veilgrid", "capacity", str(path), "--json"]
            command += ["--scenarios", str(shocks), "--confidence", confidence, "--seed", "1"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
            found = json.loads(done.stdout)
            print(
                f"{found['devices']} batteries, {confidence}: {found['capacity_kw']:.1f} kW, "
                f"proved {found['certified_kw']:.1f} kW, worst cases {found['cvar_kw']:.1f} kW"
            )
            assert found["certified_kw"] <= found["cvar_kw"] <= found["capacity_kw"]


if __name__ == "__main__":
    main()
