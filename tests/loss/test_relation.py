from __future__ import annotations

import pytest
import torch

from timelapse.loss.relation import exact, pair_count, through_unit_rows, unit_rows


def test_counts_are_those_of_counting():
    frame = torch.arange(12) // 4
    same = frame[:, None] == frame
    other = ~torch.eye(12, dtype=torch.bool)
    assert pair_count(12, 3, "full") == other.sum()
    assert pair_count(12, 3, "spatial") == (other & same).sum()
    assert pair_count(12, 3, "temporal") == (~same).sum()


def test_unit_rows_and_their_gradient():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-13, 0.0], [-5.0, 12.0]], dtype=torch.float64)
    unit, inverse = unit_rows(x, torch.float64)
    expected = torch.tensor([[0.6, 0.8], [0, 0], [0, 0], [-5 / 13, 12 / 13]], dtype=torch.float64)
    torch.testing.assert_close(unit, expected)
    gradient = through_unit_rows(torch.ones(4, 2, dtype=torch.float64), unit, inverse)
    # (1 - u (u.1)) / |x|: for (3,4), ((1,1) - 1.4 (0.6,0.8)) / 5
    torch.testing.assert_close(gradient[0], torch.tensor([0.032, -0.024], dtype=torch.float64))
    assert gradient[1:3].abs().max() == 0


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="the knob's older name has no read-back")
def test_exact_restores_what_the_user_chose():
    knob = torch.backends.cuda.matmul
    before = knob.fp32_precision
    try:
        knob.fp32_precision = "tf32"
        with torch.autocast("cpu", dtype=torch.bfloat16), exact(torch.device("cpu")):
            assert knob.fp32_precision == "ieee"
            assert not torch.is_autocast_enabled("cpu")
        assert knob.fp32_precision == "tf32"
    finally:
        knob.fp32_precision = before
