"""What a cache is keyed by: digests of networks, and of the code that decodes, crops and encodes."""

from __future__ import annotations

import ast
from functools import cache
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

PLAIN = (bool, int, float, str, tuple)  # numbers and choices, not what was built from them
UNTOLD = {"training", "name", "stands_for", "name_or_path"}  # where a module is, not what it computes
CODE = ("dataset/fit.py", "dataset/photos.py", "dataset/video.py", "encoder/*.py", "metric/frame_features.py")
CODE += ("model/*codec.py", "model/text.py")
LIBRARIES = ("diffusers", "transformers")


def fingerprint(module: nn.Module | None, without: str = "?") -> str:
    """Digest of a module's weights, bit by bit, and of the numbers that it and its parts hold (a picture's size, tiles,
    groups of a norm): the same on every device and for any number of threads. Names say nothing of what it computes.

    without: names that begin so are left out.
    """
    if module is None:
        return "none"
    whole = blake2b(digest_size=8)
    for name, value in sorted({**module.state_dict(), **dict(module.named_buffers(recurse=False))}.items()):
        if not name.startswith(without):
            whole.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            whole.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    for name, part in module.named_modules():
        if not f"{name}.".startswith(without):
            held = {k: v for k, v in vars(part).items() if isinstance(v, PLAIN) and k not in UNTOLD and k[0] != "_"}
            whole.update(f"{name}{sorted(held.items())}".encode())
    return whole.hexdigest()


@cache
def code() -> str:
    """Digest of what makes frames, latents, tokens and features of files, and of the libraries that it calls: their
    minor versions, and our own code but for its comments and docstrings."""
    here, whole = Path(__file__).parent, blake2b(digest_size=8)
    for name in LIBRARIES:
        whole.update(f"{name} {'.'.join(version(name).split('.')[:2])}".encode())
    for path in sorted(path for pattern in CODE for path in here.glob(pattern)):
        whole.update(bare(path.read_text()).encode())
    return whole.hexdigest()


def bare(source: str) -> str:
    """Code as its syntax tree, without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):  # strings that stand alone
            node.body = [n for n in body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
    return ast.dump(tree)
