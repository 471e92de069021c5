"""A results folder is written whole or not at all, and reads back as it was."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from veilgrid.errors import InputError, SetupError
from veilgrid.report.results import RunRecord, read_run, write_report, write_run
from veilgrid.report.tables import COLUMNS, Tables


def listing(folder) -> list[str]:
    return sorted(str(entry.relative_to(folder)) for entry in folder.rglob("*"))


def assert_same(left: RunRecord, right: RunRecord) -> None:
    assert left.summary == right.summary
    ours, theirs = left.scenario.files(), right.scenario.files()
    assert ours == theirs
    for name, table in left.tables.named().items():
        pd.testing.assert_frame_equal(table, right.tables.named()[name], check_freq=False)


def test_a_run_reads_back_exactly(record, tmp_path) -> None:
    report = write_run(tmp_path / "run", record)
    assert report == tmp_path / "run" / "report.html"
    assert report.is_file()
    assert_same(record, read_run(tmp_path / "run"))


def test_a_run_without_plan_reads_back_exactly(build, tmp_path) -> None:
    record = build(["station", "a", "b"], has_plan=False, has_devices=False)
    write_run(tmp_path / "run", record)
    assert_same(record, read_run(tmp_path / "run"))


def test_the_summary_is_the_json_of_the_command_line(record, tmp_path) -> None:
    write_run(tmp_path / "run", record)
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == record.summary


def test_csv_tables_hold_the_same_numbers(record, tmp_path) -> None:
    write_run(tmp_path / "run", record)
    for name in ("substation", "iterations", "settlement"):
        read = pd.read_csv(tmp_path / "run" / f"{name}.csv")
        table = record.tables.named()[name]
        for column in table.select_dtypes("number"):
            expected = table[column].to_numpy(np.float64)
            assert read[column].to_numpy() == pytest.approx(expected, rel=1e-15)


def test_writing_again_replaces_the_run_and_leaves_nothing_else(record, tmp_path) -> None:
    write_run(tmp_path / "run", record)
    before = listing(tmp_path)
    changed = dataclasses.replace(record, summary=record.summary | {"cost": 1.0})
    write_run(tmp_path / "run", changed)
    assert listing(tmp_path) == before
    assert read_run(tmp_path / "run").summary["cost"] == 1.0


def test_an_empty_folder_is_used(record, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    write_run(tmp_path / "run", record)
    assert read_run(tmp_path / "run").summary == record.summary


def test_a_folder_of_others_is_refused_untouched(record, tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        write_run(tmp_path, record)
    assert listing(tmp_path) == ["thesis.tex"]


def test_a_stranger_inside_our_folder_is_not_deleted(record, tmp_path) -> None:
    """Someone keeps notes beside the results; a second run must not take them along."""
    write_run(tmp_path / "run", record)
    (tmp_path / "run" / "notes.txt").write_text("do not lose")
    with pytest.raises(InputError, match=r"notes\.txt"):
        write_run(tmp_path / "run", record)
    assert (tmp_path / "run" / "notes.txt").read_text() == "do not lose"


def test_a_file_in_the_way_is_a_finding(record, tmp_path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        write_run(tmp_path / "run", record)


def test_a_place_that_cannot_be_written_is_told(record, tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SetupError, match="cannot be written"):
        write_run(tmp_path / "file" / "run", record)
    assert listing(tmp_path) == ["file"]


def test_a_failure_leaves_what_was_there(record, tmp_path) -> None:
    """A number that JSON cannot hold breaks off after the tables were written."""
    write_run(tmp_path / "run", record)
    before = listing(tmp_path)
    broken = dataclasses.replace(record, summary=record.summary | {"cost": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        write_run(tmp_path / "run", broken)
    assert listing(tmp_path) == before
    assert_same(record, read_run(tmp_path / "run"))
    with pytest.raises(ValueError, match="JSON"):
        write_run(tmp_path / "new", broken)
    assert listing(tmp_path) == before


def test_every_missing_or_changed_file_is_named(record, tmp_path) -> None:
    write_run(tmp_path / "run", record)
    (tmp_path / "run" / "buses.parquet").unlink()
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "run" / "scenario" / "tariff.csv").unlink()
    with pytest.raises(InputError) as caught:
        read_run(tmp_path / "run")
    told = str(caught.value)
    assert len(caught.value.findings) == 3
    for name in ("buses.parquet: is missing", "run.json: was changed", "tariff.csv: is missing"):
        assert name in told


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "folder.json is missing"),
        ("not json", "cannot be read"),
        ("[]", "does not belong"),
        ('{"format": "veilgrid run folder", "version": 99, "digests": {}}', "version 99"),
    ],
)
def test_what_is_not_a_run_folder_is_told(record, tmp_path, content, message) -> None:
    write_run(tmp_path / "run", record)
    marker = tmp_path / "run" / "folder.json"
    marker.unlink()
    if content is not None:
        marker.write_text(content)
    with pytest.raises(InputError, match=message):
        read_run(tmp_path / "run")


def test_a_folder_that_does_not_exist_is_told(tmp_path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_run(tmp_path / "nowhere")


def test_the_report_can_be_written_anew(record, tmp_path) -> None:
    write_run(tmp_path / "run", record)
    first = (tmp_path / "run" / "report.html").read_text()
    (tmp_path / "run" / "report.html").unlink()
    assert write_report(tmp_path / "run").read_text() == first
    assert read_run(tmp_path / "run").summary == record.summary


def test_tables_are_checked_before_they_are_written(record, tmp_path) -> None:
    wrong = Tables(**(record.tables.named() | {"buses": pd.DataFrame({"bus": ["a"]})}))
    with pytest.raises(AssertionError, match="declared columns"):
        write_run(tmp_path / "run", dataclasses.replace(record, tables=wrong))
    assert listing(tmp_path) == []


def test_the_examples_of_the_documentation_run(record, tmp_path, monkeypatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    write_run(tmp_path / "out", record)
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(compile(example, "docs/report.md", "exec"), {})  # noqa: S102 - our own text


def test_the_documentation_names_every_column() -> None:
    text = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    for name, columns in COLUMNS.items():
        assert f"`{name}.parquet`" in text
        for column in columns:
            assert f"`{column}`" in text, f"{name}.{column}"
