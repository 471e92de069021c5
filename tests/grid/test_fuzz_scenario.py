"""No broken folder, however broken, gets anything but findings out of the reader."""

import math

from hypothesis import example, given, settings
from hypothesis import strategies as st

from veilgrid.errors import Finding, ScenarioError
from veilgrid.grid.scenario import Scenario
from veilgrid.report.folders import open_scenario

FILES = open_scenario("six-bus").files()
CELLS = st.one_of(
    st.sampled_from(
        [
            *("", " ", "nan", "-1", "1e999", "-0", "0x10", "1_000", "1,5", '"', "'", "inf"),
            *("grid", "mill", "pv", "battery", "interval", "slack", "24", "1e-320", "1e308"),
            *("\ufeff", "9" * 400),
        ]
    ),
    st.text(max_size=6),
    st.floats().map(repr),
    st.integers().map(str),
)


def _outcome(files: dict[str, bytes]) -> Scenario | list[Finding]:
    try:
        return Scenario.from_files(files)
    except ScenarioError as error:
        return list(error.findings)


@st.composite
def _mutations(draw: st.DrawFn) -> dict[str, bytes]:
    files = dict(FILES)
    for _ in range(draw(st.integers(1, 4))):
        name = draw(st.sampled_from(sorted(files))) if files else None
        if name is None:
            break
        lines = files[name].decode(errors="replace").split("\n")
        at = draw(st.integers(0, max(len(lines) - 1, 0)))
        match draw(st.integers(0, 8)):
            case 0:
                del files[name]
                continue
            case 1:
                del lines[at]
            case 2:
                lines.insert(at, lines[draw(st.integers(0, len(lines) - 1))])
            case 3:
                other = draw(st.integers(0, len(lines) - 1))
                lines[at], lines[other] = lines[other], lines[at]
            case 4:
                lines = lines[:at]
            case 5:
                files[name] = draw(st.binary(max_size=60))
                continue
            case _:
                separator = "=" if name.endswith(".toml") else ","
                cells = lines[at].split(separator)
                cells[draw(st.integers(0, len(cells) - 1))] = draw(CELLS)
                lines[at] = separator.join(cells)
        files[name] = "\n".join(lines).encode(errors="replace")
    return files


@settings(max_examples=300)
@given(files=_mutations())
@example(files={})
@example(files={**FILES, "scenario.toml": b"x = " + b"[" * 5000})
@example(files={**FILES, "scenario.toml": b"interval_count = " + b"9" * 5000})
@example(files={**FILES, "tariff.csv": b'interval,buy,sell\n"' + b"x" * 200_000})
@example(files={**FILES, "buses.csv": b"bus,kind\n"})
@example(files={**FILES, "branches.csv": b"from_bus,to_bus,r_pu,x_pu,rating_mva\n"})
def test_a_broken_folder_gives_findings_and_nothing_else(files: dict[str, bytes]) -> None:
    outcome = _outcome(files)
    if isinstance(outcome, Scenario):
        day = outcome.day()
        assert math.isfinite(day.cost(day.uncontrolled))
        assert Scenario.from_files(outcome.files()).files() == outcome.files()
    else:
        assert all(finding.where and finding.problem for finding in outcome)


@settings(max_examples=100)
@given(name=st.sampled_from(sorted(FILES)), contents=st.binary(max_size=200))
def test_random_bytes_give_findings(name: str, contents: bytes) -> None:
    outcome = _outcome({**FILES, name: contents})
    assert isinstance(outcome, Scenario) or any(f.where.startswith(name) for f in outcome)
