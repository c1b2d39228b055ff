"""First-frame attention of ConsistI2V, ours against the public code's way: time, memory, and equal results.

    python experiments/consisti2v_attention/benchmark.py [--places 32 16 8] [--frames 16] [--repeats 3]

Widths are Stable Diffusion 2.1's at 32x32, 16x16 and 8x8 latents (320, 640, 1280 channels). The public way gathers and
joins hidden tokens, then projects all of them; ours projects each token once. Times are CPU seconds of this process
(one thread), so that other work on the machine does not count. Memory is what autograd keeps for the backward pass,
counted by storage, inputs and weights left out.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor

from timelapse.model.consisti2v_attention import SpatialAttention, TemporalAttention, rotary, rotate

WIDTHS = {32: (320, 5), 16: (640, 10), 8: (1280, 20)}  # side of the latent: channels, spatial heads


def split(x: Tensor, attn: Attention) -> Tensor:
    return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def finish(attn: Attention, x: Tensor) -> Tensor:
    return attn.to_out[0](x.transpose(1, 2).flatten(2))


def spatial_copies(attn: Attention, x: Tensor, frames: int, height: int) -> Tensor:
    """[frame i; frame 0] joined as hidden tokens for every frame, all projected."""
    first = x.unflatten(0, (-1, frames))[:, :1].expand(-1, frames, -1, -1).flatten(0, 1)
    joint = torch.cat([x, first], dim=1)
    q, k, v = attn.to_q(x), attn.to_k(joint), attn.to_v(joint)
    return finish(attn, F.scaled_dot_product_attention(*(split(y, attn) for y in (q, k, v))))


def temporal_gather(attn: Attention, x: Tensor, frames: int, height: int) -> Tensor:
    """Eight neighbours gathered as hidden tokens of every place, all projected and rotated."""
    clips = x.unflatten(0, (-1, frames))
    b, _, n, c = clips.shape
    image = F.pad(clips[:, 0].transpose(1, 2).unflatten(2, (height, -1)), (1, 1, 1, 1), mode="replicate")
    near = image.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)[..., [0, 1, 2, 3, 5, 6, 7, 8]]
    hidden = clips.transpose(1, 2).reshape(b * n, frames, c)
    joint = torch.cat([hidden, near.permute(0, 2, 3, 4, 1).reshape(b * n, 8, c)], dim=1)
    positions = torch.cat([torch.arange(frames), torch.zeros(8, dtype=torch.long)]).to(x.device)
    q = rotate(attn.to_q(hidden), rotary(positions[:frames], c, attn.heads))
    k = rotate(attn.to_k(joint), rotary(positions, c, attn.heads))
    out = F.scaled_dot_product_attention(*(split(y, attn) for y in (q, k, attn.to_v(joint))))
    return finish(attn, out).unflatten(0, (b, n)).transpose(1, 2).flatten(0, 1)


def measure(run, x: Tensor, weights: list[Tensor], repeats: int) -> dict[str, float]:
    """CPU seconds of a forward, of forward and backward, and MiB kept between them; the best of `repeats`."""
    own = {w.untyped_storage().data_ptr() for w in weights} | {x.untyped_storage().data_ptr()}
    kept: dict[int, int] = {}

    def pack(y: Tensor) -> Tensor:
        storage = y.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return y

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda y: y):
        out = run(x)
    mib = sum(kept.values()) / 2**20
    out.square().mean().backward()
    forward, both = [], []
    for _ in range(repeats):
        with torch.no_grad():
            started = time.process_time()
            run(x)
            forward.append(time.process_time() - started)
        started = time.process_time()
        run(x).square().mean().backward()
        both.append(time.process_time() - started)
    return {"forward_s": min(forward), "training_s": min(both), "kept_mib": mib}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--places", type=int, nargs="+", default=[32, 16, 8], choices=list(WIDTHS))
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| attention | latent | way | forward s | forward + backward s | kept MiB | largest difference |")
    print("|---|---|---|---|---|---|---|")
    for side in args.places:
        width, heads = WIDTHS[side]
        for name, count, ways in (
            ("spatial", heads, {"copies": spatial_copies, "ours": SpatialAttention()}),
            ("temporal 3x3", 8, {"gather": temporal_gather, "ours": TemporalAttention(3)}),
        ):
            torch.manual_seed(0)
            attn = Attention(width, heads=count, dim_head=width // count)
            x = torch.randn(args.frames, side * side, width, requires_grad=True)
            weights, outputs, numbers = list(attn.parameters()), [], {}
            for way, function in ways.items():
                run = lambda y, f=function, a=attn, s=side: f(a, y, frames=args.frames, height=s)
                with torch.no_grad():
                    outputs.append(run(x))
                numbers[way] = measure(run, x, weights, args.repeats)
            apart = (outputs[0] - outputs[1]).abs().max().item()
            for way, n in numbers.items():
                row = f"{n['forward_s']:.3f} | {n['training_s']:.3f} | {n['kept_mib']:.0f} | {apart:.1e}"
                print(f"| {name} | {side}x{side}x{width} | {way} | {row} |")
            theirs, ours = numbers.values()
            ratio = " | ".join(f"{theirs[k] / ours[k]:.2f}" for k in ("forward_s", "training_s", "kept_mib"))
            print(f"| {name} | {side}x{side}x{width} | ratio | {ratio} | |", flush=True)


if __name__ == "__main__":
    main()
