"""Digests change with what they are of, and with nothing else."""

import re
from pathlib import Path

import torch
from torch import nn

import timelapse
from timelapse.fingerprint import CODE, bare, fingerprint


def test_a_fingerprint_is_of_every_bit_whatever_the_type():
    held = nn.Module()
    kinds = [torch.float32, torch.bfloat16, torch.uint8, torch.bool]
    for n, kind in enumerate(kinds):
        held.register_buffer(f"x{n}", (torch.arange(6) % 4).to(kind).view(2, 3).mT)
    held.register_buffer("number", torch.tensor(3))
    seen = {fingerprint(held)}
    for n in range(len(kinds)):  # the same numbers in another order
        held.get_buffer(f"x{n}")[:2] = held.get_buffer(f"x{n}")[:2].flip(0).clone()
        seen.add(fingerprint(held))
    held.number += 1
    assert len(seen | {fingerprint(held)}) == len(kinds) + 2
    assert fingerprint(held, without="x") == fingerprint(held, without="x") != fingerprint(held)


def test_what_encoders_import_of_ours_is_in_the_code_that_keys_their_features():
    here = Path(timelapse.__file__).parent
    keyed = {path for pattern in CODE for path in here.glob(pattern)}
    harmless = {"timelapse"}  # its assets: weights, which are fingerprinted themselves
    for path in here.glob("encoder/*.py"):
        names = re.findall(r"(?m)^\s*from (timelapse[\w.]*) import", path.read_text())
        assert all(here.parent / f"{n.replace('.', '/')}.py" in keyed for n in {*names} - harmless), (path, names)


def test_a_comment_or_a_docstring_changes_nothing_of_code_and_another_number_does():
    source = '"""Doc."""\n\ndef f(x):\n    """Of x."""\n    return x + 1\n'
    assert bare(source) == bare(source.replace("Doc.", "Other.").replace("    return", "    # why\n    return"))
    assert bare(source) != bare(source.replace("+ 1", "+ 2"))
