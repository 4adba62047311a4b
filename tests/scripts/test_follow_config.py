"""The path of the configuration: how it is counted, and its bound in diffguide."""

from pathlib import Path

from follow_config import measure_commands

import diffguide

TOY = {
    "main.py": """
import hydra
from .upper import start

@hydra.main(version_base="1.3")
def command(cfg):
    start(cfg)
""",
    "upper/__init__.py": """
from ..lower import check, convert

def start(cfg):
    check(cfg)
    finish(cfg)
    config = convert(cfg)
    seed = config["seed"]
    finish(config)
    use(seed)

def finish(config):
    pass

def use(seed):
    pass
""",
    "lower/__init__.py": """
from typing import Any

def check(cfg):
    pass

def convert(cfg) -> dict[str, Any]:
    return dict(cfg)
""",
}


def test_climbs_and_returns_follow_the_order_of_the_calls(tmp_path):
    """upper, lower (check), upper (finish), lower (convert), upper (finish); the value `seed` is not followed."""
    for name, text in TOY.items():
        (tmp_path / "toy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "toy" / name).write_text(text)
    assert measure_commands(tmp_path / "toy") == {"main": {"functions": 4, "stays": 6, "climbs": 2, "returns": 3}}


def test_the_configuration_climbs_at_most_five_times_in_each_command():
    commands = measure_commands(Path(diffguide.__file__).parent)
    assert {*commands} == {"train", "sample", "evaluate", "convert"}
    assert max(figures["climbs"] for figures in commands.values()) <= 5
    assert min(figures["functions"] for figures in commands.values()) > 5  # it is followed through aliases and imports
