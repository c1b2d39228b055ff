"""PSNR of the shipped VAE on validation clips, and a sheet of truth over reconstruction.

python experiments/pretrain_vae/measure.py [--clips 64] [--sheet reconstructions.webp] [--write]

--write puts the numbers on the card of the shipped weights.
"""

from __future__ import annotations

import argparse
import json

import torch
from diffusers import AutoencoderKLCogVideoX
from PIL import Image
from tqdm import tqdm

from timelapse import assets
from timelapse.dataset.synthetic import Synthetic
from timelapse.loss.reconstruction import psnr


@torch.no_grad()
def main(clips: int, sheet: str | None, write: bool) -> None:
    state, card = assets.load("cogvideox_tiny_vae")
    vae = AutoencoderKLCogVideoX(**card["config"]).eval()
    vae.load_state_dict(state)
    there_and_back = lambda x: vae.decode(vae.encode(x.transpose(1, 2)).latent_dist.mean).sample.transpose(1, 2)

    data = Synthetic(size=clips, split="val")
    clip, pictures, known, processes, rows = [], [], [], {}, []
    for i in tqdm(range(0, clips, 2)):  # never one clip alone: torch's 3D convolution is slow for a batch of one
        video = torch.stack([data[j]["video"] for j in range(i, min(i + 2, clips))])
        output = there_and_back(video)
        clip.append(psnr(output, video))
        frames = video[:, ::8].flatten(0, 1)[:, None]
        pictures.append(psnr(there_and_back(frames), frames))
        sparse = 0.07**0.5 * torch.randn(video.shape, generator=torch.Generator().manual_seed(i))
        sparse[:, 8] = video[:, 8]
        known.append(psnr(there_and_back(sparse)[:, 8], video[:, 8]))
        for j, value in enumerate(clip[-1]):
            processes.setdefault(data.process(i + j), []).append(value.item())
            if i + j < 10:
                rows += [torch.cat([v[j, t].clamp(-1, 1) for t in (0, 5, 10, 16)], 2) for v in (video, output)]
    mean = lambda values: round(torch.cat(values).mean().item(), 2)
    found = {"psnr_clips_dB": mean(clip), "psnr_pictures_dB": mean(pictures), "psnr_known_among_noise_dB": mean(known)}
    found["psnr_clips_dB_by_process"] = {name: round(sum(v) / len(v), 1) for name, v in processes.items()}
    print(json.dumps({**found, "clips": clips}, indent=2))
    if write:
        assets.add_numbers(assets.FOLDER / "cogvideox_tiny_vae.safetensors", {**found, "clips": clips})
    if sheet:
        left = len(rows) // 4 * 2  # a clip is two rows
        half = torch.cat([torch.cat(rows[:left], 1), torch.cat(rows[left : 2 * left], 1)], 2)
        Image.fromarray(((half + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).save(sheet, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--sheet")
    parser.add_argument("--write", action="store_true")
    main(**vars(parser.parse_args()))
