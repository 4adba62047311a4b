"""Prints what the tests cover, per package, and ends with 1 where that is too little.

coverage json -o coverage.json && python .ci/coverage_table.py coverage.json
"""

import collections
import json
import sys
from pathlib import Path

MIN_LINES = 92  # percent of all lines
MIN_BRANCHES = 95  # percent of the branches of the packages in STRICT
STRICT = {"guidance", "objectives", "samplers"}
COUNTS = ("covered_lines", "num_statements", "covered_branches", "num_branches")


def percent(covered: int, total: int) -> float:
    """A share in percent; all of nothing is 100."""
    return 100 * covered / total if total else 100.0


def add_up(files: dict) -> dict[str, collections.Counter]:
    """The counts of the files, per package of diffguide; modules at the root count as one."""
    packages: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for name, file in files.items():
        below = name.replace("\\", "/").rpartition("diffguide/")[2].split("/")
        packages[below[0] if len(below) > 1 else "(root)"].update({key: file["summary"][key] for key in COUNTS})
    return packages


def missing_branches(files: dict, package: str) -> list[str]:
    """`file: from->to ...` of each file of a package: the branches that no test takes; -n is the end of the block at line n."""
    found = ((name.replace("\\", "/"), file.get("missing_branches")) for name, file in sorted(files.items()))
    return [
        f"{name}: " + " ".join(f"{start}->{end}" for start, end in missing)
        for name, missing in found
        if missing and f"diffguide/{package}/" in name
    ]


def main(path: str) -> int:
    report = json.loads(Path(path).read_text(encoding="utf-8"))
    packages = add_up(report["files"])
    packages["all"].update({key: report["totals"][key] for key in COUNTS})
    mistakes = []
    print(f"{'coverage':14}{'lines':>9}{'branches':>10}")
    for name, counts in sorted(packages.items(), key=lambda item: (item[0] == "all", item[0])):
        lines = percent(counts["covered_lines"], counts["num_statements"])
        branches = percent(counts["covered_branches"], counts["num_branches"])
        print(f"{name:14}{lines:8.1f}%{branches:9.1f}%")
        if name == "all" and lines < MIN_LINES:
            mistakes.append(f"{lines:.1f} % of all lines are covered; at least {MIN_LINES} % must be")
        if name in STRICT and branches < MIN_BRANCHES:
            mistakes.append(
                f"{branches:.1f} % of the branches of {name} are covered; at least {MIN_BRANCHES} % must be"
            )
            mistakes += missing_branches(report["files"], name)
    print(*mistakes, sep="\n", end="\n" if mistakes else "", file=sys.stderr)
    return int(bool(mistakes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
