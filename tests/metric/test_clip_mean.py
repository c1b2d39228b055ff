from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from timelapse.metric.colour_drift import ColourDrift
from timelapse.metric.fidelity import FidelityPSNR
from timelapse.metric.frame_features import efficientnet_lite0
from timelapse.metric.subject_consistency import SubjectConsistency


def test_a_broken_sample_is_an_error_not_a_missing_clip():
    video = torch.zeros(2, 3, 3, 8, 8)
    video[1, 2, 0, 4, 4] = float("nan")
    with pytest.raises(ValueError, match="NaN or inf"):
        ColourDrift().update(video)
    with pytest.raises(ValueError, match=r"expected \(B,T,3,H,W\)"):
        ColourDrift().update(torch.zeros(2, 3, 3, 8))


def test_overshoot_is_what_is_shown():
    video = torch.randn(1, 3, 3, 8, 8, generator=torch.manual_seed(0)) * 2
    a, b = ColourDrift(), ColourDrift()
    a.update(video)
    b.update(video.clamp(-1, 1))
    assert a.compute() == b.compute() > 0


def test_the_network_is_no_part_of_the_module_tree():
    metric = SubjectConsistency(efficientnet_lite0(32))
    assert not list(metric.parameters()) and not metric.state_dict()
    assert metric.backbone == "EfficientNet-Lite0 (ImageNet, 32 px)"


def _clips():
    truth = torch.rand(4, 3, 3, 8, 8, generator=torch.manual_seed(0)) - 0.5
    offset = torch.tensor([0.3, 0.1, 0.02, 0.2]).view(4, 1, 1, 1, 1)
    known = torch.tensor([[True, False, False]] * 3 + [[False] * 3])  # the last does not count
    return truth, truth + offset, known


def _measure(clips: slice) -> FidelityPSNR:
    truth, sample, known = _clips()
    metric = FidelityPSNR()
    metric.update(sample[clips], truth=truth[clips], known=known[clips])
    return metric


def test_uneven_parts_add_up():
    """A mean of the parts' means would be wrong."""
    whole, part = _measure(slice(0, 4)), _measure(slice(0, 1))
    part.merge_state(_measure(slice(1, 4)))
    torch.testing.assert_close(part.compute(), whole.compute())
    assert part.count == whole.count == 3
    truth, sample, _ = _clips()
    expected = -10 * torch.log10((sample - truth)[:3, 0].pow(2).mean((1, 2, 3)) / 4)
    torch.testing.assert_close(whole.compute(), expected.mean())


def _rank(rank: int, world: int, port: str, out: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    metric = _measure(slice(0, 1) if rank == 0 else slice(1, 4))
    torch.save((metric.compute(), metric.count), f"{out}/{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_uneven_processes_equal_one(tmp_path):
    mp.spawn(_rank, args=(2, str(20000 + os.getpid() % 20000), str(tmp_path)), nprocs=2)
    one = _measure(slice(0, 4))
    for rank in range(2):
        value, count = torch.load(tmp_path / str(rank), weights_only=True)
        torch.testing.assert_close(value, one.compute())
        assert count == one.count == 3
