"""The script of cost against work: exponents of exact laws, and a table, figure and file from one small curve."""

import json

import cost_scaling
import pytest
import torch


def test_the_exponent_of_a_power_law_is_its_own():
    values = (1, 3, 10, 40)
    assert cost_scaling.fit_exponent(values, [5 * value**1.5 for value in values]) == pytest.approx(1.5)
    assert cost_scaling.fit_exponent(values, [2.0] * 4) == pytest.approx(0)


def test_the_fit_is_over_the_stated_range(monkeypatch):
    curve = cost_scaling.Curve("work", "size", (1, 2, 4, 8), lambda value: (lambda: value, value), ((1, 2), (4, 8)))
    seconds = {"1": [1.0], "2": [4.0], "4": [16.0], "8": [32.0]}  # per image 1, 2, 4, 4 seconds
    monkeypatch.setattr(cost_scaling, "alternate", lambda works, clock, rounds: seconds)
    found = cost_scaling.measure(curve, 1)
    assert found["milliseconds_per_image"] == [1000, 2000, 4000, 4000]
    assert [fit["range"] for fit in found["fits"]] == [[1, 2], [4, 8]]
    assert [fit["exponent"] for fit in found["fits"]] == pytest.approx([1, 0])
    row = cost_scaling.format_row(found)
    assert row == "| work | size: 1, 2, 4, 8 | 1e+03, 2e+03, 4e+03, 4e+03 | 1.00 (1 to 2), 0.00 (4 to 8) |"


@pytest.mark.parametrize("name", cost_scaling.CURVES)
def test_the_smallest_work_of_every_curve_runs(name, monkeypatch):
    build = cost_scaling.build
    unet = "backbone.channels=4", "backbone.blocks=1", "backbone.attention=[]"
    small = ("backbone.width=8", "backbone.depth=1") if name == "tokens" else unet
    monkeypatch.setattr(cost_scaling, "build", lambda *overrides: build(*overrides, *small))
    monkeypatch.setattr(cost_scaling, "images_of_area", lambda side: 1)
    work, images = cost_scaling.CURVES[name].build(cost_scaling.CURVES[name].values[0])
    work()
    assert images >= 1


def test_table_figure_and_file_are_written(tmp_path, monkeypatch, capsys):
    def build(value):
        x = torch.ones(value, value)
        return lambda: x @ x, 1

    curve = cost_scaling.Curve("a product", "side", (2, 4), build, ((2, 4),))
    monkeypatch.setattr(cost_scaling, "CURVES", {"product": curve})
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    path = tmp_path / "figures.json"
    cost_scaling.main(["--rounds", "1", "--output", str(tmp_path / "drawn"), "--json", str(path)])
    assert "| a product | side: 2, 4 |" in capsys.readouterr().out
    assert (tmp_path / "drawn/cost_scaling.png").read_bytes().startswith(b"\x89PNG")
    (found,) = json.loads(path.read_text())
    assert found["values"] == [2, 4] and len(found["milliseconds_per_image"]) == 2
