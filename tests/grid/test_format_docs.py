"""The pages on the scenario format and on units say what the code does."""

import re
from pathlib import Path

import pytest

from veilgrid.grid._read import (
    BRANCH_COLUMNS,
    DEVICE_COLUMNS,
    FILES,
    FURTHER_DEVICE_COLUMNS,
)
from veilgrid.grid._settings import KEYS
from veilgrid.grid.device import DEVICE_KINDS

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("scenario-format.md", "units.md", "data.md")


@pytest.mark.parametrize("page", PAGES)
def test_the_python_on_a_page_runs(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, page, "exec"), names)  # noqa: S102 - our own documentation


def test_the_page_names_every_file_key_column_and_kind() -> None:
    text = (DOCS / "scenario-format.md").read_text(encoding="utf-8")
    columns = (*BRANCH_COLUMNS, *DEVICE_COLUMNS, *FURTHER_DEVICE_COLUMNS)
    for name in (*FILES, *KEYS, *columns, *DEVICE_KINDS):
        assert f"`{name}`" in text, name
