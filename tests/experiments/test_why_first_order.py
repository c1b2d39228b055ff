from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import yaml

FOLDER = Path(__file__).parents[2] / "experiments" / "why_first_order"


@pytest.fixture(scope="module")
def figure():
    spec = importlib.util.spec_from_file_location("why_first_order", FOLDER / "figure.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_versions_are_what_the_paper_says(figure):
    truth, versions = figure.signals()
    shifted, partial, zigzag = (versions[name] - truth for name in ("shifted", "partial match", "zigzag"))
    torch.testing.assert_close(shifted, torch.full((4,), figure.OFFSET, dtype=torch.float64))
    torch.testing.assert_close(zigzag, figure.OFFSET * torch.tensor([1, -1, 1, -1], dtype=torch.float64))
    assert partial[:2].abs().max() == 0 and partial[3] < partial[2] < 0  # follows for two frames, then diverges


def test_frames_alone_cannot_tell_and_differences_can(figure):
    rows = figure.numbers()
    assert list(rows["per-frame L2"].values()) == pytest.approx([0.25] * 3, rel=1e-12)
    # errors (0,0,-a,-2a) with 5 a^2 = 4 c^2: pairs differ by 0, a, 2a, a, 2a, a; zigzag: four pairs by 2c, two by 0
    c2 = figure.OFFSET**2
    expected = [0, 11 * (4 * c2 / 5) / 6, 4 * (4 * c2) / 6]
    assert list(rows["pairwise differences"].values()) == pytest.approx(expected, rel=1e-12, abs=1e-15)
    truth, versions = figure.signals()
    for signal in versions.values():  # 2T/(T-1) times the variance of the error
        variance = (signal - truth).var(correction=0).item()
        assert figure.pairwise(signal, truth) == pytest.approx(8 / 3 * variance, abs=1e-12)


def test_drepa_on_a_circle_sees_differences_of_phase_alone(figure):
    truth, versions = figure.signals()
    circle = figure.FEATURES["$(\\cos s, \\sin s)$"]
    other = ~torch.eye(4, dtype=torch.bool)
    for signal in versions.values():
        cosines = [(s[:, None] - s).cos() for s in (signal, truth)]
        expected = (cosines[0] - cosines[1])[other].square().mean().item()
        assert figure.drepa(signal, truth, circle) == pytest.approx(expected, abs=1e-14)
    assert figure.drepa(versions["shifted"], truth, circle) < 1e-15


def test_drepa_is_not_shift_invariant_and_degenerate_on_scalars(figure):
    rows = figure.numbers()
    with_offset, scalar = rows["dREPA on $(1, s)$"], rows["dREPA on $s$ alone"]
    assert with_offset["shifted"] > with_offset["partial match"] > 1e-3
    assert max(scalar.values()) < 1e-15


def test_numbers_are_the_expected_ones(figure):
    expected = yaml.safe_load((FOLDER / "expected.yaml").read_text())
    for row, values in figure.numbers().items():
        assert values == pytest.approx(expected[row], abs=expected["tolerance"]), row


def test_draws(figure, tmp_path):
    figure.draw(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 20_000
