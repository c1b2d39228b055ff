"""PSNR of a shipped image VAE on pictures of validation clips, and a sheet of truth beside reconstruction.

python experiments/pretrain_picture_vae/measure.py [--model consisti2v_tiny] [--clips 64] [--sheet X.webp] [--write]

--write puts the numbers on the card of the shipped weights.
"""

from __future__ import annotations

import argparse
import json

import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from tqdm import tqdm

from timelapse import assets
from timelapse.build import build
from timelapse.help import CONF
from timelapse.loss.reconstruction import psnr

DATASETS = {"consisti2v_tiny": "synthetic", "svd_tiny": "motion_tiny"}  # what each is for
FRAMES = [2, 8, 13]


@torch.no_grad()
def main(model: str, clips: int, sheet: str | None, write: bool) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [f"model={model}", f"dataset={DATASETS[model]}", "video.frames=14"])
    cfg.model.weights = {"vae": f"{model}_vae"}  # which may be all that there is
    codec, data = build(cfg.model).codec, build(cfg.dataset, split="val", size=clips)
    values, processes, rows = [], {}, []
    for i in tqdm(range(clips)):
        video = data[i]["video"][None]
        pictures, output = (x[0, FRAMES] for x in (video, codec.decode(codec.moments(video)[0]).clamp(-1, 1)))
        values += psnr(output, pictures).tolist()
        processes.setdefault(data.process(i), []).extend(values[-len(FRAMES) :])
        if i < 10:
            rows.append(torch.cat([*pictures, *output], 2))
    average = lambda numbers: round(sum(numbers) / len(numbers), 1)
    by_process = {name: average(found) for name, found in processes.items()}
    found = {"psnr_pictures_dB": average(values), "psnr_pictures_dB_by_process": by_process, "clips": clips}
    print(json.dumps(found, indent=2))
    if write:
        assets.add_numbers(assets.FOLDER / f"{model}_vae.safetensors", found)
    if sheet:
        half = len(rows) // 2
        halves = torch.cat([torch.cat(rows[:half], 1), torch.cat(rows[half : 2 * half], 1)], 2)
        Image.fromarray(((halves + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).save(sheet, quality=85)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="consisti2v_tiny", choices=sorted(DATASETS))
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--sheet")
    parser.add_argument("--write", action="store_true")
    main(**vars(parser.parse_args()))
