"""The README's tables: every row has the cells of its head, so that no row is cut or left to be filled."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"
SEPARATOR = re.compile(r"(?<!\\)\|")  # \| is a stroke within a cell


def cells(row: str) -> int:
    return len(SEPARATOR.split(row.strip())) - 2


def test_every_row_has_the_cells_of_its_head():
    lines, rows = README.read_text(encoding="utf-8").splitlines(), 0
    for number, line in enumerate(lines):
        if re.fullmatch(r"\|[-:| ]+\|", line):
            head = cells(lines[number - 1])
            for row in lines[number:]:
                if not row.startswith("|"):
                    break
                assert cells(row) == head, row
                rows += 1
    assert rows > 20
