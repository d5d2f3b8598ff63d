"""The measurement of pictures runs to its end and tells what it has to."""

from __future__ import annotations

import json

from benchmarks.data import main


def test_every_row_has_a_figure_of_the_plain_way_beside_it(capsys):
    assert main(["--pictures", "60", "--json"]) in (0, 1)  # figures of so few pictures are not judged
    found = json.loads(capsys.readouterr().out)
    names = " ".join(row["name"] for row in found["rows"])
    for word in ("scan and bucket", "again", "growth", "memory", "encode", "on disk", "together"):
        assert word in names
    assert all(row["ours"] > 0 and row["unit"] and "ratio" in row for row in found["rows"] if "memory" not in row["name"])
    assert all(row["reference"] > 0 for row in found["rows"] if "memory" not in row["name"])
