"""PSNR of a shipped image VAE on pictures of validation clips, and a sheet of truth beside reconstruction.

python experiments/pretrain_picture_vae/measure.py [--weights NAME] [--clips 64] [--sheet X.webp] [--write]

--write puts the numbers on the card of the shipped weights.
"""

from __future__ import annotations

import argparse
import json

import diffusers
import torch
from PIL import Image
from tqdm import tqdm

from timelapse import assets
from timelapse.dataset.synthetic import Synthetic
from timelapse.loss.reconstruction import psnr

CLASSES = {"consisti2v_tiny_vae": "AutoencoderKL", "svd_tiny_vae": "AutoencoderKLTemporalDecoder"}
FRAMES = (2, 8, 14)


@torch.no_grad()
def main(weights: str, clips: int, sheet: str | None, write: bool) -> None:
    state, card = assets.load(weights)
    vae = getattr(diffusers, CLASSES[weights])(**card["config"]).eval()
    vae.load_state_dict(state)
    told = {"num_frames": 1} if weights.startswith("svd") else {}
    data, values, processes, rows = Synthetic(size=clips, split="val"), [], {}, []
    for i in tqdm(range(clips)):
        pictures = data[i]["video"][list(FRAMES)]
        output = vae.decode(vae.encode(pictures).latent_dist.mean, **told).sample.clamp(-1, 1)
        values += psnr(output, pictures).tolist()
        processes.setdefault(data.process(i), []).extend(values[-len(FRAMES) :])
        if i < 10:
            rows.append(torch.cat([*pictures, *output], 2))
    average = lambda numbers: round(sum(numbers) / len(numbers), 1)
    by_process = {name: average(found) for name, found in processes.items()}
    found = {"psnr_pictures_dB": average(values), "psnr_pictures_dB_by_process": by_process, "clips": clips}
    print(json.dumps(found, indent=2))
    if write:
        assets.add_numbers(assets.FOLDER / f"{weights}.safetensors", found)
    if sheet:
        halves = torch.cat([torch.cat(rows[:5], 1), torch.cat(rows[5:], 1)], 2)
        Image.fromarray(((halves + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).save(sheet, quality=85)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="consisti2v_tiny_vae", choices=sorted(CLASSES))
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--sheet")
    parser.add_argument("--write", action="store_true")
    main(**vars(parser.parse_args()))
