"""scripts/latent_speed.py measures what it says, for a batch of two."""

import json

from latent_speed import main


def test_every_row_is_measured(tmp_path, capsys):
    figures = main(["--rounds", "1", "--batch", "2", "--steps", "2", "--json", str(tmp_path / "speed.json")])
    assert json.loads((tmp_path / "speed.json").read_text()) == figures and min(figures.values()) > 0
    assert set(figures) >= {"train pixels", "train latents", "sample pixels", "sample latents", "encode", "decode"}
    table = capsys.readouterr().out
    assert f"{figures['train: latents over pixels']:.2f}" in table and "bar: 3" in table
