"""Captions to tokens: a text encoder, T5 or CLIP."""

from __future__ import annotations

import logging

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


class Text(nn.Module):
    """Frozen encoder; captions are padded to `length` tokens, and padding is attended to, as both CogVideoX and Stable
    Diffusion were trained.

    With `ByT5Tokenizer` a token is a byte of UTF-8 and no vocabulary file is needed.
    """

    def __init__(self, encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, length: int):
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        self.tokenizer, self.length, self.width = tokenizer, length, encoder.config.hidden_size

    def encode(self, captions: list[str]) -> Tensor:
        """(B, length, width); longer captions are cut, with a warning."""
        options = {"padding": "max_length", "max_length": self.length, "truncation": True, "return_tensors": "pt"}
        ids = self.tokenizer(captions, **options).input_ids
        for caption in captions:
            count = len(self.tokenizer(caption).input_ids)
            if count > self.length:
                log.warning("caption cut to %d of %d tokens: %r", self.length, count, caption)
        return self.encoder(ids.to(self.encoder.device)).last_hidden_state
