"""Scenario files as pandas tables and back."""

import io
import tomllib
from collections.abc import Mapping

import pandas as pd

from veilgrid.errors import Finding, ScenarioError
from veilgrid.grid._read import BRANCH_COLUMNS, DEVICE_COLUMNS, FILES, FURTHER_DEVICE_COLUMNS
from veilgrid.grid._table import meant
from veilgrid.grid._write import toml_line

NUMBERS = (*BRANCH_COLUMNS[2:], *DEVICE_COLUMNS[3:], *FURTHER_DEVICE_COLUMNS)
INDEX = {"buses": "bus", "devices": "device"}


def tables_of_files(files: Mapping[str, bytes]) -> dict[str, pd.DataFrame]:
    """Parse the files of a valid scenario, names of buses and devices as text."""
    settings = tomllib.loads(files["scenario.toml"].decode())
    values = pd.Series(settings, dtype=object, name="value").rename_axis("key")
    tables = {"scenario": values.to_frame()}
    for name, contents in files.items():
        what = name.removesuffix(".csv")
        if what == name:
            continue
        texts = ("bus", "kind", "device", "from_bus", "to_bus")
        frame = pd.read_csv(
            io.BytesIO(contents),
            dtype=dict.fromkeys(texts, str),
            keep_default_na=False,
            na_values={column: [""] for column in NUMBERS},
            float_precision="round_trip",
        )
        index = INDEX.get(what, "interval" if "interval" in frame.columns else None)
        tables[what] = frame.set_index(index) if index else frame
    return tables


def files_of_tables(tables: Mapping[str, pd.DataFrame]) -> dict[str, bytes]:
    """Write tables as the files of a scenario, without judging the cells.

    Raises
    ------
    ScenarioError
        If something is not a table of the format at all.
    """
    known = [name.removesuffix(".toml").removesuffix(".csv") for name in FILES]
    files: dict[str, bytes] = {}
    findings: list[Finding] = []
    for what, table in tables.items():
        if what not in known:
            findings.append(Finding(f"table {what}", "is unknown", meant(str(what), known)))
        elif not isinstance(table, pd.DataFrame):
            findings.append(Finding(f"table {what}", "is not a pandas DataFrame"))
        elif what == "scenario" and "value" not in table.columns:
            findings.append(Finding("table scenario", "has no column value"))
        elif what == "scenario":
            pairs = table["value"].dropna().items()
            lines = [toml_line(str(key), value) for key, value in pairs]
            files["scenario.toml"] = "\n".join(lines).encode()
        else:
            has_index = table.index.name is not None
            files[f"{what}.csv"] = table.to_csv(index=has_index, lineterminator="\n").encode()
    if findings:
        raise ScenarioError(findings)
    return files
