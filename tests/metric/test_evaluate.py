from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from timelapse.evaluation import stand_ins
from timelapse.metric.clip_mean import ClipMean
from timelapse.metric.colour_drift import ColourDrift
from timelapse.metric.evaluate import describe, evaluate
from timelapse.metric.fidelity import FidelityPSNR
from timelapse.metric.frame_features import EfficientNetLite0, efficientnet_lite0_appearance
from timelapse.metric.morphing_degree import MorphingDegree
from timelapse.metric.progression import Progression
from timelapse.metric.subject_consistency import SubjectConsistency

CONF = Path(__file__).parents[2] / "conf"


def batches():
    generator = torch.manual_seed(0)
    for b in (2, 1):
        truth = torch.rand(b, 4, 3, 32, 32, generator=generator) * 2 - 1
        known = torch.zeros(b, 4, dtype=torch.bool)
        known[0, 1] = True
        yield {"video": truth * 0.9, "truth": truth, "known": known, "key": ["a"] * b}


def test_networks_that_stand_in_for_others_are_named_with_the_metrics_that_read_them():
    net, other = efficientnet_lite0_appearance(32), EfficientNetLite0(32)
    metrics = {"a": MorphingDegree(net), "b": ColourDrift(), "c": Progression(net), "d": MorphingDegree(other)}
    said = "EfficientNet-Lite0 (ImageNet, 32 px, stride 8 and 16) stands in for DINO ViT-B/16 in a, c."
    assert stand_ins(metrics) == [said]


def test_equals_each_metric_alone_with_one_pass_of_the_network():
    net = EfficientNetLite0(32)
    frames = []
    net.register_forward_hook(lambda module, args, out: frames.append(len(out)))
    metrics = {
        "subject_consistency": SubjectConsistency(net),
        "morphing_degree": MorphingDegree(net),
        "progression": Progression(net),
        "fidelity_psnr": FidelityPSNR(),
        "colour_drift": ColourDrift(),
    }
    numbers, clips = evaluate(metrics, batches())
    assert sum(frames) == 3 * 4
    for name, metric in metrics.items():
        metric.reset()
        for batch in batches():
            metric.update(batch["video"], truth=batch["truth"], known=batch["known"])
        assert numbers[name] == pytest.approx(metric.compute().item(), rel=1e-5)
        assert len(clips[name]) == 3
    assert numbers["progression_n"] == 3
    assert numbers["fidelity_psnr_n"] == 2 and math.isnan(clips["fidelity_psnr"][1])


def test_a_second_call_starts_anew_and_what_does_not_apply_is_left_out():
    metrics = {"fidelity_psnr": FidelityPSNR(), "colour_drift": ColourDrift()}
    first, _ = evaluate(metrics, batches())
    assert evaluate(metrics, batches())[0] == first
    numbers, clips = evaluate(metrics, [{"video": torch.zeros(1, 3, 3, 8, 8)}])
    assert set(numbers) == {"colour_drift", "colour_drift_n"} and set(clips) == {"colour_drift"}


@pytest.mark.parametrize("name", ["subject_consistency", "subject_consistency_min", "subject_consistency_first"])
def test_consistency_is_never_read_alone(name):
    with pytest.raises(ValueError, match=f"{name} is 1 for a static video.*add morphing_degree"):
        evaluate({name: SubjectConsistency(EfficientNetLite0(32))}, batches())


def test_every_file_of_the_group_builds_and_runs():
    lists = {p.stem: OmegaConf.load(p).get("defaults") for p in (CONF / "metric").glob("*.yaml")}
    files = sorted(CONF / "metric" / f"{name}.yaml" for name, several in lists.items() if not several)
    for several in filter(None, lists.values()):
        assert {name for name in several if isinstance(name, str)} <= set(lists) and len(several) == len(set(several))
    standard = lists["standard"]
    features = {"_target_": "timelapse.metric.frame_features.efficientnet_lite0_appearance", "size": 32}
    metrics = {}
    for path in files:
        cfg = OmegaConf.merge({"frame_features": features, "video": {"frames": 5}}, OmegaConf.load(path))
        assert path.stem in cfg
        if path.stem.startswith("frechet"):  # of a whole set, not of clips; its networks' files do not ship
            continue
        metrics[path.stem] = instantiate(cfg[path.stem])
    assert all(isinstance(m, ClipMean) for m in metrics.values())
    assert len({id(m.net) for m in metrics.values() if m.net is not None}) == 1  # one network for all
    numbers, _ = evaluate(metrics, batches())
    assert set(standard) <= set(numbers)  # others may need what these clips do not have
    for name, metric in metrics.items():
        low, high = metric.range
        assert name not in numbers or low <= numbers[name] <= high, name
    assert describe("morphing_degree", metrics["morphing_degree"]) == (
        "morphing_degree (EfficientNet-Lite0 (ImageNet, 32 px, stride 8 and 16), 0..1, no direction)"
    )
