"""Stable Video Diffusion's UNet told one end of a clip or both: forward motion from the first frame, backward motion
from the last, or the two at once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import Tensor, nn

from timelapse.model.attention import Maps, TemporalAttention, Use
from timelapse.types import Condition

log = logging.getLogger("timelapse")
ROTATE = ("all", "up", "none")
MOTIONS = ("forward", "backward", "both", "twice")


class SvdBackbone(nn.Module):
    """Noisy latent and condition -> v, with the numbers of `UNetSpatioTemporalConditionModel.forward`.

    ids: the UNet's added time ids (frames a second - 1, motion bucket, noise augmentation), the same for all clips.
    reverse: None, a forward network that is trained whole; or {train, rotate, ...}: the network of backward motion f'.
    It is the same UNet, frozen, with matrices of its own (`train`, e.g. to_v and to_out.0) in the temporal
    self-attention of every layer; in layers that `rotate` names (all, up, none) its attention maps are the forward
    network's, turned by 180 degrees. So both networks of the paper take the memory of one.
    joint: run both motions as one batch (no map is stored, one launch of each kernel); False: one after the
    other (half the activations, the maps of all rotated layers are stored). The numbers are the same.
    """

    def __init__(
        self,
        unet: UNetSpatioTemporalConditionModel,
        ids: tuple[float, float, float] = (6, 127, 0.02),
        reverse: Mapping[str, Any] | None = None,
        joint: bool = True,
        gradient_checkpointing: bool = False,
        compile: bool = False,
    ):
        super().__init__()
        self.unet, self.ids, self.joint = unet, tuple(ids), joint
        self.attention = TemporalAttention(unet)
        self.width = unet.config.block_out_channels[0]
        self.motion = "forward" if reverse is None else "backward"
        self.rotated = frozenset()
        self.stored = self.said = 0  # bytes of the maps that the last pass kept; the most so far
        self.reverse = nn.ParameterDict()  # keys with "/" for ".", which parameter names cannot have
        if reverse is not None:
            wanted = {"all": "", "up": "up_blocks.", "none": None}[reverse["rotate"]]
            layers = self.attention.layers
            self.rotated = frozenset(n for n in layers if wanted is not None and n.startswith(wanted))
            unet.requires_grad_(False)
            own = dict(unet.named_parameters())
            dead = {"to_q", "to_k"} & {*reverse["train"]}
            if dead and self.rotated:
                raise ValueError(
                    f"svd: {' and '.join(sorted(dead))} would learn nothing in layers whose maps are the forward "
                    f"network's; leave them out of model.reverse.train, or type model.reverse.rotate=none"
                )
            for name in (f"{layer}.{part}.weight" for layer in layers for part in reverse["train"]):
                if name not in own:
                    raise ValueError(f"svd: no weight {name}; reverse.train may name to_q, to_k, to_v and to_out.0")
                # What is trained stays in float32 over half-precision weights.
                self.reverse[name.replace(".", "/")] = nn.Parameter(own[name].detach().clone().float())
        if gradient_checkpointing:
            unet.enable_gradient_checkpointing(self.attention.checkpoint)
        if compile:
            for block in self.blocks():
                block.compile()

    def blocks(self) -> list[nn.Module]:
        """Units of sharding and compilation."""
        return [*self.unet.down_blocks, self.unet.mid_block, *self.unet.up_blocks]

    def weights(self) -> dict[str, Tensor]:
        """UNet parameter name -> the matrix that f' has in its place."""
        return {name.replace("/", "."): p for name, p in self.reverse.items()}

    def delta(self) -> dict[str, Tensor]:
        """UNet parameter name -> what training added to it."""
        own = dict(self.unet.named_parameters())
        return {name: (p.detach() - own[name].detach()).float() for name, p in self.weights().items()}

    @torch.no_grad()
    def add(self, delta: Mapping[str, Tensor]) -> None:
        """Add a delta, of this or of another SVD checkpoint. ValueError when it is of another architecture."""
        weights = self.weights()
        for name in weights.keys() | delta.keys():
            if name not in weights or name not in delta or weights[name].shape != delta[name].shape:
                have, found = (tuple(d[name].shape) if name in d else "absent" for d in (weights, delta))
                raise ValueError(
                    f"svd: the delta does not fit: {name} is {found}, expected {have}; use the model.reverse.train and "
                    f"the architecture that it was trained with"
                )
            weights[name].add_(delta[name].to(weights[name]))

    def forward(
        self, zt: Tensor, t: Tensor, condition: Condition, taps: tuple[int, ...] = (), motion: str | None = None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """v (B,t,c,h,w), always in forward time, and no taps.

        zt: (B,t,c,h,w) in forward time. t: (B,) noise levels. motion:
            forward   f from the first frame (a forward network's default)
            backward  f' from the last frame, told to move the other way; maps by the frozen f without gradient (default
                      of a network with `reverse`)
            both      (2,B,t,c,h,w): forward and backward
            twice     (2,B,t,c,h,w): f from the first frame, and the same f from the last on the reversed clip
        """
        motion = motion or self.motion
        if taps:
            raise ValueError("svd: alignment losses that read hidden tokens are not supported; use loss=[denoise]")
        if motion not in MOTIONS:
            raise ValueError(f"svd: motion={motion!r}; choose one of {', '.join(MOTIONS)}")
        if motion in ("backward", "both") and self.motion == "forward":
            raise ValueError(
                "svd: this network was taught no backward motion (model.reverse=null); use +experiment=svd_backward "
                "as it is, or sampler=image_to_video or time_reversal, which need none"
            )
        wanted = self.unet.config.num_frames
        if zt.shape[1] < wanted:
            raise ValueError(f"svd: {zt.shape[1]} frames, but this network makes {wanted}; set video.frames={wanted}")
        self.stored = 0
        first, last = ends(condition, both=motion != "forward")
        if motion == "forward":
            return self.run(zt, t, *first), {}
        if motion == "both" and self.joint:
            with self.attention.use(Use(mirror=True, layers=self.rotated, weights=self.weights())):
                pair = self.side_by_side(zt, t, first, last)
            return pair, {}
        if motion == "twice":
            return self.side_by_side(zt, t, first, last), {}
        ahead, maps = None, Maps()
        if motion == "both" or self.rotated:
            with torch.no_grad(), self.attention.use(Use(record=maps, layers=self.rotated)):
                ahead = self.run(zt, t, *first)
            self.stored = maps.nbytes
            self.report()
        with self.attention.use(Use(replay=maps, layers=self.rotated, weights=self.weights())):
            back = self.run(zt.flip(1), t, *last).flip(1)
        return (torch.stack([ahead, back]) if motion == "both" else back), {}

    def report(self) -> None:
        """To the log at the first pass, and again where more is stored than ever before."""
        if self.stored > self.said and not self.unet.conv_in.weight.is_meta:
            log.info(f"attention maps stored at a time: {self.stored / 2**20:.1f} MiB")
            self.said = self.stored

    def side_by_side(self, zt: Tensor, t: Tensor, first: tuple[Tensor, Tensor], last: tuple[Tensor, Tensor]) -> Tensor:
        """Forward and reversed clips as one batch: (2,B,t,c,h,w), both in forward time."""
        image, token = (torch.cat(pair) for pair in zip(first, last))
        ahead, back = self.run(torch.cat([zt, zt.flip(1)]), torch.cat([t, t]), image, token).chunk(2)
        return torch.stack([ahead, back.flip(1)])

    def run(self, zt: Tensor, t: Tensor, image: Tensor, token: Tensor) -> Tensor:
        """The UNet on a clip whose frame 0 is `image` (B,c,h,w) and `token` (B,1,D)."""
        dtype = self.unet.conv_in.weight.dtype
        repeated = image[:, None].expand(-1, zt.shape[1], -1, -1, -1)
        latent = torch.cat([zt, repeated.to(zt)], dim=2).to(dtype)
        ids = torch.tensor(self.ids, dtype=dtype, device=zt.device).expand(len(zt), -1)
        return self.unet(latent, 0.25 * t.float().log(), token.to(dtype), ids, return_dict=False)[0]


def ends(condition: Condition, both: bool) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """((image latent, token) of the first frame, the same of the last)."""
    if both and condition.tokens.shape[1] < 2:
        raise ValueError(
            "svd: only the first frame is given, and backward motion starts from the last; give both ends: "
            "'sample.frames=[[0,-1]]' or 'input.frames=[a.jpg,b.jpg]'"
        )
    if not condition.known[:, 0].all():
        frames = condition.known[0].nonzero().flatten().tolist()
        raise ValueError(
            f"svd: frames {frames} are known; this network is told the first frame, alone or with the last; type "
            f"conditioning=end_frames"
        )
    latent, tokens = condition.latent, condition.tokens
    return (latent[:, 0], tokens[:, :1]), (latent[:, -1], tokens[:, -1:])
