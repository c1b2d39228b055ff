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
    rows = [(line, re.findall(r"([\d.]+) ± ([\d.]+)", line)) for line in tables[0].splitlines()]
    left = {row: [numbers[:2] for numbers in said.values()] for row, said in EXPECTED[name]["rows"].items()}
    for line, cells in rows:  # each is of one row, the one of its name if there is, and no two of the same
        if not cells:
            continue
        named = line.split("|")[1].strip()
        among = [named] if named in left else list(left)
        row = next((r for r in among if all(any(all(map(near, c, pair)) for pair in left[r]) for c in cells)), None)
        assert row, line
        del left[row]
    moved = [row for row, pairs in left.items() if any(spread for _, spread in pairs)]
    assert not moved  # a row that no seed moves may stand there without a spread


@pytest.mark.parametrize("name", [name for name, said in EXPECTED.items() if "numbers" in said])
def test_a_page_of_one_run_has_its_numbers(name):
    text = (FOLDER / name / "README.md").read_text()
    for metric, value in EXPECTED[name]["numbers"].items():
        said = f"| {value:.1f} dB |" if metric.endswith("psnr") else f"| {value:.3f} |"
        assert said in text, metric


@pytest.mark.parametrize("name", [name for name, said in EXPECTED.items() if "weights" in said])
def test_a_page_is_of_the_weights_that_ship(name):
    assert EXPECTED[name]["weights"] == assets.digests([*EXPECTED[name]["weights"]])


def test_the_small_networks_pages_have_the_numbers_of_their_cards():
    said = lambda name: " ".join((FOLDER / name / "README.md").read_text().split())
    numbers = lambda name: assets.load(name)[1]["numbers"]
    page, card = said("pretrain_vae"), numbers("cogvideox_tiny_vae")
    for name in ("psnr_clips_dB", "psnr_pictures_dB", "psnr_known_among_noise_dB"):
        assert f"| {card[name]:.1f} dB |" in page, name
    for name, value in card["psnr_clips_dB_by_process"].items():
        row = re.search(rf"\| ([\w, ]*\b{name}\b[\w, ]*) \| ([\d., ]*) dB \|", page)
        assert dict(zip(row[1].split(", "), row[2].split(", ")))[name] == f"{value:.1f}"
    card = numbers("cogvideox_tiny_transformer")
    held_out = " / ".join(f"{card[f'val/denoise_t{t}']:.3f}" for t in (100, 400, 700, 999))
    assert f"from a frame that is not the first: {held_out}." in said("pretrain_cogvideox")
