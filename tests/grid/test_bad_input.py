"""Broken scenario folders: tests/cases/<name>/ describes each; a new case needs no code.

``edits.json`` lists edits of the bundled six-bus scenario, carried out in order; files that stand
beside it replace those of the scenario. An edit has a ``file`` and one of

- ``remove``: true, the file is left out
- ``text``: the whole contents; ``hex``: the same as bytes in hexadecimal
- ``replace``: [old, new], the first occurrence of ``old``
- ``row``, ``column``, ``value``: one cell; ``row`` counts from 1 at the header
- ``row``, ``delete``: true, one line; ``row``, ``insert``: a line that then has that number
- ``drop``: a column to leave out; ``rename``: [old, new] column
- ``scale``: a factor, with ``columns`` (absent = all but the first)

``expected.json`` lists the findings: ``where`` in full, a piece of ``problem`` and, if given, of
``advice``. No others may be found.
"""

import csv
import io
import json
from pathlib import Path

import pytest

from veilgrid.errors import ScenarioError
from veilgrid.grid.scenario import Scenario
from veilgrid.report.folders import bundled_scenarios

CASES = Path(__file__).parents[1] / "cases"


def _base() -> dict[str, bytes]:
    folder = bundled_scenarios()["six-bus"]
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def _edited(contents: bytes, edit: dict) -> bytes:
    """Carry out one edit on the contents of a file."""
    if "text" in edit:
        return edit["text"].encode()
    if "hex" in edit:
        return bytes.fromhex(edit["hex"])
    text = contents.decode()
    if "replace" in edit:
        old, new = edit["replace"]
        assert old in text, f"{old!r} is not in {edit['file']}"
        return text.replace(old, new, 1).encode()
    lines = text.splitlines()
    if "insert" in edit:
        lines.insert(edit["row"] - 1, edit["insert"])
    elif "delete" in edit:
        del lines[edit["row"] - 1]
    else:
        rows = list(csv.reader(lines))
        _edit_cells(rows, edit)
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows(rows)
        return stream.getvalue().encode()
    return ("\n".join(lines) + "\n").encode()


def _edit_cells(rows: list[list[str]], edit: dict) -> None:
    header = rows[0]
    if "value" in edit:
        rows[edit["row"] - 1][header.index(edit["column"])] = edit["value"]
    elif "drop" in edit:
        position = header.index(edit["drop"])
        for row in rows:
            del row[position]
    elif "rename" in edit:
        header[header.index(edit["rename"][0])] = edit["rename"][1]
    else:
        for position in [header.index(name) for name in edit.get("columns", header[1:])]:
            for row in rows[1:]:
                row[position] = repr(float(row[position]) * edit["scale"]) if row[position] else ""


def folder_of(case: Path) -> dict[str, bytes]:
    """Build the files of a case."""
    files = _base()
    for file in case.iterdir():
        if file.name not in ("edits.json", "expected.json"):
            files[file.name] = file.read_bytes()
    edits = case / "edits.json"
    for edit in json.loads(edits.read_text()) if edits.exists() else []:
        if edit.get("remove"):
            del files[edit["file"]]
        else:
            files[edit["file"]] = _edited(files.get(edit["file"], b""), edit)
    return files


@pytest.mark.parametrize("case", sorted(CASES.iterdir()), ids=lambda case: case.name)
def test_every_fault_of_a_folder_is_found_and_named(case: Path) -> None:
    with pytest.raises(ScenarioError) as caught:
        Scenario.from_files(folder_of(case))
    found = {finding.where: finding for finding in caught.value.findings}
    expected = json.loads((case / "expected.json").read_text())
    assert sorted(f.where for f in caught.value.findings) == sorted(e["where"] for e in expected)
    for entry in expected:
        finding = found[entry["where"]]
        assert entry["problem"] in finding.problem
        assert entry.get("advice", "") in finding.advice


def test_the_base_of_the_cases_is_sound() -> None:
    assert Scenario.from_files(_base()).remarks == ()


@pytest.mark.parametrize("case", sorted(CASES.iterdir())[:1], ids=lambda case: case.name)
def test_findings_read_as_sentences(case: Path) -> None:
    with pytest.raises(ScenarioError) as caught:
        Scenario.from_files(folder_of(case))
    head, *lines = str(caught.value).splitlines()
    assert "in the input" in head
    assert len(lines) == len(caught.value.findings)
