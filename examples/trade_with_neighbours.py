"""Find the price at which neighbours trade the sun of a summer noon, without showing any bid.

Households of the bundled SimBench feeder that generate more than they use sell; the others buy.
Limits lie between what the substation pays and what it charges.
"""

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import veilgrid

DAY = "simbench-rural-2016-07-18"
NOON = 48


def main() -> None:
    """Make one order a household and clear a round."""
    scenario = veilgrid.open_scenario(DAY)
    need = {str(bus.name): 0.0 for bus in scenario.network.buses}
    for bus, load in zip(scenario.network.buses, scenario.load_p_mw[:, NOON], strict=True):
        need[str(bus.name)] += 1000 * float(load)
    for device in scenario.devices:
        if type(device).__name__ == "Photovoltaic":
            need[str(device.bus)] -= 1000 * float(device.available_mw[NOON])
    low, high = 50.0, 100.0  # What the substation pays and charges, per MWh.
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "bids.csv"
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["participant", "side", "price", "quantity"])
            for number, (bus, kw) in enumerate(sorted(need.items())):
                patience = (number * 37 % 100) / 100  # Some care more than others.
                limit = high - (high - low) * patience if kw > 0 else low + (high - low) * patience
                rows.writerow(
                    [bus, "buy" if kw > 0 else "sell", round(limit, 1), abs(round(kw, 3))]
                )
        command = [sys.executable, "-m", "veilgrid", "market", str(path), "--json", "--seed", "1"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    found = json.loads(done.stdout)
    print(f"{found['rule']}: {found['volume']:.1f} kW trade at {found['price']}")
    for trade in found["trades"][:5]:
        print(f"{trade['participant']:>12} {trade['side']:4} {trade['quantity']:8.3f} kW")
    assert sum(round(1e6 * trade["payment"]) for trade in found["trades"]) == 0
    assert low <= found["price"] <= high


if __name__ == "__main__":
    main()
