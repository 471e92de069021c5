"""Take a scenario apart into pandas tables, change it, and compare schemes on the result."""

import pandas as pd

import veilgrid


def main() -> None:
    """Give the village a larger battery and more load, and see what the day costs then."""
    tables = veilgrid.open_scenario("six-bus").tables()

    # Tables are the files of the scenario folder, in the same units.
    devices = tables["devices"]
    devices.loc["battery-village", ["charge_max_mw", "discharge_max_mw"]] = 0.6
    devices.loc["battery-village", "energy_max_mwh"] = 2.4
    tables["load_p_mw"]["village"] *= 1.1
    tables["scenario"].loc["name", "value"] = "six-bus-larger-battery"

    # All rules are checked again; a broken one would raise ScenarioError and name row and column.
    scenario = veilgrid.Scenario.from_tables(tables)

    rows = []
    for scheme in ("alone", "central", "exchange"):
        plan = veilgrid.plan_day(scenario.day(), scheme)
        rows.append(
            {
                "scheme": scheme,
                "status": str(plan.outcome.status),
                "cost": plan.cost,
                "iterations": plan.outcome.iteration_count,
                "passes AC": plan.ac_check is not None and plan.ac_check.passed,
            }
        )
    result = pd.DataFrame(rows).set_index("scheme")
    print(result.round(2).to_string())

    optimum = result.loc["central", "cost"]
    assert abs(result.loc["exchange", "cost"] / optimum - 1.0) < 1e-3, "exchange finds the optimum"
    assert optimum < result.loc["alone", "cost"], "planning together is cheaper"


if __name__ == "__main__":
    main()
