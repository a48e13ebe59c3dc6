"""A model that answers chats in batches, for every task that asks it."""

from typing import Any

import torch

from ming.cli.session import Session
from ming.loading import LoadOptions
from ming.training.chats import prompt_batch

DEFAULT_MAX_NEW_TOKENS = 512  # as of the release's examples


class Answerer:
    """Configuration and processor are read at once, the weights at `load`.

    Args:
        model: directory or Hub id.
        options: where and how the model computes.
        seed: of everything random.
        use_whisper_encoder: whether recordings go through Whisper, not SANM.

    Raises:
        UsageError: there is no such model or device.
    """

    def __init__(self, model: str, options: LoadOptions, seed: int, use_whisper_encoder: bool = False):
        self.session = Session(model, options, seed=seed, quiet=True)
        self.seed, self.use_whisper_encoder = seed, use_whisper_encoder
        self.model: Any = None
        self.parts: set[str] = set()

    def load(self, *parts: str) -> None:
        """Read the weights of text and of the named parts of `ming.loading.PARTS`, if they are not there yet."""
        if self.model is None or not self.parts.issuperset(parts):
            self.parts |= set(parts)
            self.model = self.session.load(*sorted(self.parts))

    @property
    def hearing(self) -> str:
        """The part that hears."""
        return "whisper" if self.use_whisper_encoder else "audio"

    @torch.no_grad()
    def answers(self, chats: list[list[dict]], **decoding: Any) -> list[str]:
        """The answers to a batch of chats that end with a user turn.

        Args:
            chats: B lists of messages.
            decoding: options of `generate`.
        """
        assert self.model is not None, "load comes first"
        options = {"max_new_tokens": DEFAULT_MAX_NEW_TOKENS, "do_sample": False, **decoding}
        inputs = prompt_batch(self.session.processor, chats, self.use_whisper_encoder)
        sequences = self.model.generate(**inputs.to(self.model.device, self.model.dtype), **options)
        replies = sequences[:, inputs["input_ids"].shape[1] :]
        return self.session.processor.batch_decode(replies, skip_special_tokens=True)
