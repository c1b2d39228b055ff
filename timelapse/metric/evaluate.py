"""Several metrics over batches of samples, with one pass through each feature network."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from torch import Tensor

from timelapse.metric.clip_mean import ClipMean
from timelapse.metric.frame_features import video_features


def evaluate(
    metrics: Mapping[str, ClipMean], batches: Iterable[Mapping[str, Tensor]], alone: bool = False
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Numbers for metrics.json, and each clip's for tables.

    batches: dicts of `video` and what there is of `truth`, `known`, `given`, `mask` (shapes as in
    `ClipMean.update`; other keys are ignored). Returns (name -> mean, `name_n` -> clips it stands on),
    (name -> one number a clip in order, NaN where the metric does not apply). The first is over all
    processes, the second over this one's. A metric that applied to no clip is left out of both.
    alone: these are all clips there are, and the other processes of a run are not asked for theirs.
    """
    check_together(metrics)
    nets = {m.backbone: m.net for m in metrics.values() if m.net is not None}
    clips: dict[str, list[float]] = {name: [] for name in metrics}
    for metric in metrics.values():
        metric.reset()
        if alone:
            metric.distributed_available_fn = lambda: False
    for batch in batches:
        features = {name: video_features(net, batch["video"].clamp(-1, 1)) for name, net in nets.items()}
        for name, metric in metrics.items():
            metric.update(**{**batch, "features": features})
            clips[name] += metric.last.tolist()
    numbers: dict[str, float] = {}
    for name, metric in metrics.items():
        value = float(metric.compute())
        if metric.count:
            numbers[name], numbers[f"{name}_n"] = value, metric.count
        else:
            del clips[name]
    return numbers, clips


def check_together(names: Collection[str]) -> None:
    """ValueError for a choice of metrics that would mislead."""
    consistent = next((name for name in names if name.startswith("subject_consistency")), None)
    if consistent and "morphing_degree" not in names:
        raise ValueError(
            f"metric {consistent} is 1 for a static video and must not be read alone; "
            f"add morphing_degree, e.g. 'metric=[{consistent},morphing_degree]'"
        )


def describe(name: str, metric: ClipMean) -> str:
    """One line for a report: the name, what it reads with, unit, range and direction."""
    directions = {True: "higher is better", False: "lower is better", None: "no direction"}
    low, high = metric.range
    parts = [metric.backbone, metric.unit, f"{low:g}..{high:g}", directions[metric.higher_is_better]]
    return f"{name} ({', '.join(p for p in parts if p)})"
