"""What a page of results says is what its expected.yaml has, of the weights that ship."""

import re
from pathlib import Path

import pytest
import yaml

from timelapse import assets

FOLDER = Path(__file__).parents[2] / "experiments"
EXPECTED = {path.parent.name: yaml.safe_load(path.read_text()) for path in FOLDER.glob("*/expected.yaml")}
STUDIES = [name for name, said in EXPECTED.items() if "python -m timelapse.run +study=" in str(said.get("command"))]


def near(said: str, measured: float) -> bool:
    """As far apart as two roundings may be: of the table, and of expected.yaml to four decimals."""
    return abs(float(said) - measured) <= 0.5 * 10 ** -len(said.partition(".")[2]) + 0.51e-4


@pytest.mark.parametrize("name", STUDIES)
def test_every_mean_and_spread_of_a_studys_table_was_measured(name):
    tables = re.findall(r"(?:^\|.*\n)+", (FOLDER / name / "README.md").read_text(), re.MULTILINE)
    cells = {*re.findall(r"([\d.]+) ± ([\d.]+)", tables[0])}
    measured = [numbers[:2] for row in EXPECTED[name]["rows"].values() for numbers in row.values()]
    found = {cell for cell in cells if any(all(map(near, cell, pair)) for pair in measured)}
    assert cells and cells == found, cells - found


def test_the_demos_page_has_its_numbers():
    text = (FOLDER / "drepa_vjepa" / "README.md").read_text()
    for metric, value in EXPECTED["drepa_vjepa"]["numbers"].items():
        said = f"| {value:.1f} dB |" if metric.endswith("psnr") else f"| {value:.3f} |"
        assert said in text, metric


@pytest.mark.parametrize("name", [name for name, said in EXPECTED.items() if "weights" in said])
def test_a_page_is_of_the_weights_that_ship(name):
    assert EXPECTED[name]["weights"] == assets.digests([*EXPECTED[name]["weights"]])
