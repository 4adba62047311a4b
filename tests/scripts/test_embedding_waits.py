"""scripts/embedding_waits.py measures what it says, for a batch of two."""

from embedding_waits import main


def test_both_storages_are_measured(capsys):
    small = {"steps": 1, "batch": 2, "examples": 8, "length": 64, "width": 8}
    found = main([word for name, value in small.items() for word in (f"--{name}", str(value))])
    assert found.keys() == {"memory", "shards"} and all(row["calls"] == 0 for row in found.values())
    assert all(0 < row["waits"] < row["step"] for row in found.values())
    assert "bar: no call, below 1%" in capsys.readouterr().out
