"""The READMEs: tables are whole, links and paths exist, options exist, and the front page is short."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
ROOMS = ["configs", "diffguide", "findings", "outputs/gallery", "scripts", "tests"]
PLACES = ["*.md", ".github/**/*.md", *(f"{room}/**/*.md" for room in ROOMS)]
PAGES = sorted({path.relative_to(CHECKOUT).as_posix() for place in PLACES for path in CHECKOUT.glob(place)})
SEPARATOR = re.compile(r"(?<!\\)\|")  # \| is a stroke within a cell
LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)")
FILE = re.compile(r"(?<![\w./-])((?:[\w.-]+/)*[\w-]+\.(?:py|sh|yaml|toml|cff))(?![\w/])")
CHOICE = re.compile(r"(?<![\w.@/-])([a-z]+(?:/[a-z]+)*)(@[\w.]+)?=([a-z][\w,]*)(?![\w.:=(/])")
MAX_FRONT_LINES = 200

every_page = pytest.mark.parametrize("page", PAGES)


def read(page: str) -> str:
    return (CHECKOUT / page).read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def tables(text: str) -> Iterator[list[str]]:
    """The rows of each table, its head first."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if re.fullmatch(r"\|[-:| ]+\|", line):
            end = next((row for row in range(number, len(lines)) if not lines[row].startswith("|")), len(lines))
            yield lines[number - 1 : end]


def cells(row: str) -> int:
    return len(SEPARATOR.split(row.strip())) - 2


def test_every_folder_has_a_readme():
    packages = {path.parent.relative_to(CHECKOUT).as_posix() for path in CHECKOUT.glob("diffguide/*/__init__.py")}
    assert packages > {"diffguide/guidance", "diffguide/cli"}
    rooms = {f"{room}/README.md" for room in {*ROOMS, *packages}}
    assert rooms | {"README.md", ".github/CONTRIBUTING.md"} <= {*PAGES}
    assert sum(1 for page in PAGES for _ in tables(read(page))) > 20  # so that the next test is not about nothing


def test_the_readme_is_short():
    assert len(read("README.md").splitlines()) <= MAX_FRONT_LINES


@every_page
def test_every_row_has_the_cells_of_its_head(page):
    for table in tables(read(page)):
        for row in table:
            assert cells(row) == cells(table[0]), row


@every_page
def test_links_exist(page):
    for target in LINK.findall(re.sub(r"```.*?```", "", read(page), flags=re.DOTALL)):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        file = (CHECKOUT / page).parent / name if name else CHECKOUT / page
        assert file.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), f"{page}: {target}"


@every_page
def test_files_that_are_named_exist(page):
    """Relative to the page, to the checkout or to the package; files of the user are called mine or my_..."""
    folders = [(CHECKOUT / page).parent, CHECKOUT, CHECKOUT / "diffguide"]
    for name in FILE.findall(read(page)):
        if page == "CHANGELOG.md" or name.startswith(("mine", "my", "config.yaml")):
            continue
        assert any((folder / name).exists() for folder in folders), f"{page}: {name}"


@every_page
def test_options_that_are_chosen_exist(page):
    """Every group=option in a command or in the text names a file of configs/."""
    if page == "CHANGELOG.md":
        return
    for group, _, options in CHOICE.findall(read(page)):
        folder = CHECKOUT / "configs" / group
        for option in options.strip(",").split(",") if folder.is_dir() else ():
            if option not in {"a", "b", "both", "mine", "steep"}:  # stand-ins, and options of the reader's own
                known = [path.stem for path in folder.glob("*.yaml")]
                assert option in {*known, "null"}, f"{page}: {group}={option}"


def test_the_reference_of_the_configuration_is_current():
    """`python scripts/write_config_reference.py` writes it."""
    command = [sys.executable, CHECKOUT / "scripts/write_config_reference.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
