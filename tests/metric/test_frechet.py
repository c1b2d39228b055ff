from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from timelapse.metric.clip_features import i3d
from timelapse.metric.evaluate import evaluate
from timelapse.metric.frame_features import efficientnet_lite0_pooled, inception_v3
from timelapse.metric.frechet import FrechetDistance, frechet

D = 5


class Means(nn.Module):
    """A frame's features: the means of its 2 x 2 tiles' first channel, and one more; linear, so that laws are known."""

    name, width = "means", D

    def forward(self, frames):
        tiles = nn.functional.adaptive_avg_pool2d(frames[:, :1], 2).flatten(1)
        return torch.cat([tiles, frames[:, 1].mean((1, 2))[:, None]], 1)


def spd(seed: int) -> torch.Tensor:
    a = torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return a @ a.T + 0.1 * torch.eye(D, dtype=torch.float64)


def exactly(mean: torch.Tensor, cov: torch.Tensor, n: int = 40, seed: int = 0) -> torch.Tensor:
    """(n,D) whose mean and unbiased covariance are these to the last digits."""
    x = torch.randn(n, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (n - 1))).T
    return mean + white @ torch.linalg.cholesky(cov).T


def clips(batch: int, seed: int) -> torch.Tensor:
    return torch.rand(batch, 4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_closed_forms():
    mean, zero, one = torch.arange(D).double(), torch.zeros(D, dtype=torch.float64), torch.eye(D, dtype=torch.float64)
    assert frechet(mean, one, zero, one).item() == pytest.approx(0 + 1 + 4 + 9 + 16)
    a, b = torch.tensor([1.0, 4, 9, 0, 2]).double(), torch.tensor([4.0, 1, 0, 3, 2]).double()
    expected = float((a.sqrt() - b.sqrt()).square().sum())  # commuting covariances
    assert frechet(zero, a.diag(), zero, b.diag()).item() == pytest.approx(expected)
    assert frechet(zero, spd(1), zero, spd(1)).item() == pytest.approx(0, abs=1e-9)
    assert frechet(zero, spd(1), zero, 9 * spd(1)).item() == pytest.approx(4 * float(spd(1).trace()))
    turned = torch.linalg.qr(spd(3))[0]  # a rotation of feature space changes nothing
    turn = lambda c: turned @ c @ turned.T
    apart = frechet(mean, spd(1), zero, spd(2))
    assert frechet(turned @ mean, turn(spd(1)), zero, turn(spd(2))).item() == pytest.approx(float(apart))
    assert frechet(zero, spd(2), mean, spd(1)).item() == pytest.approx(float(apart))  # symmetric


def test_two_gaussians_with_known_moments_whatever_the_order_and_the_parts():
    mean_a, mean_b = torch.linspace(-1, 1, D).double(), torch.linspace(2, 0, D).double()
    made, real = exactly(mean_a, spd(1)), exactly(mean_b, spd(2), n=60, seed=1)
    expected = float(frechet(mean_a, spd(1), mean_b, spd(2)))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    values = []
    for pieces in ([made], [made[order]], made[order].split(7)):
        metric = FrechetDistance(Means())
        metric.add("real", real)
        for piece in pieces:
            metric.add("made", piece)
        values.append(float(metric.compute()))
    assert values == pytest.approx([expected] * 3, rel=1e-6) and metric.count == 40
    halves = [FrechetDistance(Means()) for _ in range(2)]
    for half, piece, truth in zip(halves, (made[:11], made[11:]), (real[:50], real[50:])):
        half.add("made", piece)
        half.add("real", truth)
    halves[0].merge_state(halves[1])
    assert float(halves[0].compute()) == pytest.approx(expected, rel=1e-6) and halves[0].count == 40


def test_fewer_samples_than_dimensions_still_give_the_distance_of_what_is_there(caplog):
    """Rank 2 in 5 dimensions: shifted by s, the distance is exactly |s|^2; a matrix root of A B is of no use here."""
    x = torch.randn(3, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    metric = FrechetDistance(Means())
    metric.add("made", x + 0.5)
    metric.add("real", x)
    assert float(metric.compute()) == pytest.approx(D * 0.25, rel=1e-6)
    assert "too few" in caplog.text


def test_large_means_do_not_drown_the_spread():
    metric = FrechetDistance(Means())
    mean = torch.full((D,), 1e3, dtype=torch.float64)
    metric.add("made", exactly(mean, spd(1)))
    metric.add("real", exactly(mean, 4 * spd(1), seed=3))
    assert float(metric.compute()) == pytest.approx(float(spd(1).trace()), rel=1e-4)


def test_given_frames_are_not_counted_and_the_truth_has_no_distance():
    truth, known = clips(6, 0), torch.zeros(6, 4, dtype=torch.bool)
    known[:, [0, -1]] = True
    video = truth.clone()
    video[:, 0] = clips(6, 1)[:, 0]  # what a method makes of a frame that it was given
    metric = FrechetDistance(Means())
    metric.update(video, truth=truth, known=known)
    assert float(metric.compute()) == pytest.approx(0, abs=1e-6) and metric.count == 12
    metric.update(video, truth=truth)
    assert float(metric.compute()) > 1e-6


def test_beside_the_other_metrics_and_without_truth():
    truth, video = clips(4, 0), clips(4, 1)
    batches = [{"video": video[i : i + 2], "truth": truth[i : i + 2]} for i in (0, 2)]
    numbers, per_clip = evaluate({"frechet": FrechetDistance(Means())}, batches)
    direct = FrechetDistance(Means())
    direct.update(video, truth=truth)
    assert numbers["frechet"] == pytest.approx(float(direct.compute()), rel=1e-6) and numbers["frechet_n"] == 16
    assert all(math.isnan(x) for x in per_clip["frechet"]) and len(per_clip["frechet"]) == 4
    assert evaluate({"frechet": FrechetDistance(Means())}, [{"video": video}]) == ({}, {})
    with pytest.raises(ValueError, match="NaN or inf"):
        direct.update(video * float("nan"), truth=truth)


def test_real_features_tell_noise_from_a_shift_of_brightness():
    """Ordered by how much was done to the frames, with the ImageNet network."""
    net = efficientnet_lite0_pooled(64)
    truth = nn.functional.interpolate(clips(6, 0).flatten(0, 1), 64, mode="bicubic").clamp(-1, 1).unflatten(0, (6, 4))
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    values = []
    for strength in (0.0, 0.05, 0.5):
        metric = FrechetDistance(net)
        metric.update((truth + strength * noise).clamp(-1, 1), truth=truth)
        values.append(float(metric.compute()))
    assert values[0] < 1e-6 < values[1] < values[2]
    assert not list(copy.copy(metric).parameters()) and metric.backbone.startswith("EfficientNet-Lite0")


class Whole(nn.Module):
    """Of a clip: each of the five numbers above, averaged over its frames."""

    name, width, clips = "whole", D, True

    def forward(self, video):
        return Means()(video.flatten(0, 1)).unflatten(0, video.shape[:2]).mean(1)


def test_of_clips_it_counts_clips_and_every_frame_of_them():
    truth, video, known = clips(8, 0), clips(8, 1), torch.zeros(8, 4, dtype=torch.bool)
    known[:, 0] = True
    numbers, _ = evaluate({"fvd": FrechetDistance(Whole())}, [{"video": video, "truth": truth, "known": known}])
    direct = FrechetDistance(Whole())
    direct.add("made", Whole()(video))
    direct.add("real", Whole()(truth))
    assert numbers["fvd"] == pytest.approx(float(direct.compute()), rel=1e-6) and numbers["fvd_n"] == 8


def test_missing_weights_are_said(tmp_path):
    with pytest.raises(ValueError, match="I3D: no weights at .*i3d.pt"):
        i3d(str(tmp_path / "i3d.pt"))
    with pytest.raises(ValueError, match="InceptionV3: no weights at .*pt_inception"):
        inception_v3(str(tmp_path / "pt_inception.pth"))


def test_the_files_of_the_group_build_and_one_that_is_missing_is_named():
    from hydra import compose, initialize_config_dir

    from timelapse.build import build_all
    from timelapse.run import CONF

    with initialize_config_dir(str(CONF), version_base="1.3"):
        here = compose("config", ["+experiment=finetune_only", "metric=[frechet]"])
        video = compose("config", ["+experiment=finetune_only", "metric=[frechet_video]"])
    assert isinstance(build_all(here.metric)["frechet"], FrechetDistance)
    if not Path(video.metric.frechet_video.net.weights).exists():
        with pytest.raises(ValueError, match="i3d_torchscript.pt"):
            build_all(video.metric)
