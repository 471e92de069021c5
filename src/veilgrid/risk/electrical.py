"""Whether a figure can be true of a rated element [risk 6]."""

from typing import Final

from veilgrid.risk.aggregate import Answer

SHORT_CIRCUIT: Final = 25.0
"""Times its rating that a transformer of 4 % impedance carries into a short circuit."""

_SLACK: Final = 1e-9


def electrical_faults(
    answer: Answer, rating: float, measured: float | None, tolerance: float
) -> list[str]:
    """Return why a figure cannot be true of an element; empty if it can.

    Parameters
    ----------
    answer
        The figure, in the unit of the rating.
    rating : > 0
        Of the element.
    measured
        What its own meter says; None if it has none.
    tolerance : 0..1
        Part of the measured figure that losses and meters may account for.
    """
    faults = []
    low, high = answer.reach
    slack = _SLACK * max(abs(low), abs(high), 1.0)
    if not low - slack <= answer.value <= high + slack:
        faults.append(
            f"{answer.value:.6g} is not between {low:.6g} and {high:.6g}, which is all that the "
            "bounds of the sources allow"
        )
    loading = max(abs(answer.value), abs(answer.risk_adjusted)) / rating
    if loading > SHORT_CIRCUIT:
        faults.append(
            f"{loading:.3g} times the rating is more than a short circuit gives at 4 % impedance; "
            "readings and rating are probably in different units"
        )
    if measured is not None and abs(answer.value - measured) > tolerance * abs(measured):
        faults.append(
            f"the readings give {answer.value:.6g}, the meter of the element says {measured:.6g}; "
            f"by Kirchhoff's law they agree up to losses (tolerance {tolerance:.0%})"
        )
    return faults
