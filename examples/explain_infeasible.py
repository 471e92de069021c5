"""Ask for more than the network can give, and read which limits stand in the way."""

import veilgrid


def day_with_cable(rating_mva: float) -> veilgrid.Scenario:
    """Return the six-bus day with another rating of the cable to the depot."""
    tables = veilgrid.open_scenario("six-bus").tables()
    branches = tables["branches"]
    branches.loc[branches["to_bus"] == "depot", "rating_mva"] = rating_mva
    return veilgrid.Scenario.from_tables(tables)


def main() -> None:
    """Charge a bus overnight through a cable that is too thin, then through one that is not."""
    scenario = day_with_cable(0.25)
    day = scenario.day()
    plan = veilgrid.plan_day(day, "exchange")
    print(f"cable of 0.25 MVA: {plan.outcome.status} after {plan.outcome.iteration_count} steps")
    # An infeasible day is an outcome, not an error: there is no plan, but there is a reason.
    assert plan.outcome.status is veilgrid.RunStatus.INFEASIBLE
    assert plan.settlement is None

    # A rating is a polygon of several rows; keep the one that is short by most.
    limits = veilgrid.Limits.of(day.network)
    worst: dict[tuple[str, str, int], float] = {}
    for row, interval, amount in plan.outcome.violations:
        limit, bus = limits.describe(row)
        where = (limit, str(day.network.buses[bus].name), interval)
        worst[where] = max(worst.get(where, 0.0), amount * day.network.base_mva)
    print("limits that cannot be met together, with the least total violation:")
    for (limit, name, interval), short_mva in sorted(worst.items()):
        print(f"  {limit} of the branch to {name}, interval {interval}: {short_mva:.3f} MVA")
    assert {name for _, name, _ in worst} == {"depot"}

    again = veilgrid.plan_day(day_with_cable(0.35).day(), "exchange")
    print(f"cable of 0.35 MVA: {again.outcome.status}, cost {again.cost:.2f} {scenario.currency}")
    assert again.is_as_wanted


if __name__ == "__main__":
    main()
