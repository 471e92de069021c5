"""Plan a day together and print who pays whom.

Run it with the folder of a scenario or the name of a bundled one; the default is small and fast.
"""

import sys

import veilgrid


def main(name: str = "six-bus") -> None:
    """Plan the scenario by exchange and print the settlement."""
    scenario = veilgrid.open_scenario(name)
    plan = veilgrid.plan_day(scenario.day(), "exchange")
    if plan.settlement is None or plan.certificate is None or plan.ac_check is None:
        sys.exit(f"{scenario.name}: {plan.outcome.status}, there is no plan to settle")

    money = scenario.currency
    print(f"{scenario.name}: {plan.outcome.status} in {plan.outcome.iteration_count} iterations")
    print(f"together {plan.cost:.2f} {money}, everybody alone {plan.cost_alone:.2f} {money}")
    print(f"certificate: at most {plan.certificate.gap:.1e} above the optimum")
    print(f"voltages: {plan.ac_check.vm_min_pu:.4f} to {plan.ac_check.vm_max_pu:.4f} pu")

    print(f"\n{'site':10}{'pays':>12}{'bears':>12}{'alone':>12}  {money}")
    for account in plan.settlement.accounts:
        # Money at rest is integer micro-units, so that sums are exact.
        amounts = (account.payment, account.cost, account.cost_alone)
        columns = "".join(f"{amount / 1e6:12.2f}" for amount in amounts)
        print(f"{account.site:10}{columns}")
    assert plan.settlement.total == 0, "what some pay, others receive"


if __name__ == "__main__":
    main(*sys.argv[1:2])
