"""Stage 1 of Ming-Tiny: chats about the world in all modalities, one forward pass per modality and step."""

import numpy as np
import torch

from ming.training.chats import chat_batch
from ming.training.loop import SeededBatches

from .dense import dense_labels
from .scenes import choose
from .speech import SpeechPool, Utterance
from .world import sample_chat

# Per modality: the rows to sample from, and the number of chats per step. A repeated row counts more. Chats with more
# than one medium are frequent: which of them a question is about is learned last.
MIX: dict[str, tuple[tuple[str, ...], int]] = {
    "text": (("text_only",), 24),
    "image": (("image_qa", "image_count_describe", "multi_turn"), 8),
    "pair": (("two_images",), 28),
    "video": (("video_qa",), 28),
    "speech": (("asr_sanm", "asr_sanm", "asr_noisy"), 10),
    "spoken": (("spoken_question",), 10),
    "mixed": (("mixed",), 12),
    "request": (("drawing", "spoken_drawing", "editing"), 5),
}
QUESTION_FIRST = 0.25  # share of chats whose question stands before the media


def vary_order(messages: list[dict], rng: np.random.Generator) -> list[dict]:
    """Sometimes move the text of the first message before its media, since users write both orders."""
    first = messages[0]["content"]
    if first[-1]["type"] == "text" and rng.random() < QUESTION_FIRST:
        return [{**messages[0], "content": [first[-1], *first[:-1]]}, *messages[1:]]
    return messages


class SameDuration:
    """A speaker with `count` sentences of about the same duration."""

    def __init__(self, pool: SpeechPool, rng: np.random.Generator, count: int):
        self.pool, self.split = pool, pool.split
        self.numbers = pool.alike(rng, count, pool.sentences)

    def sentence(self, rng: np.random.Generator) -> Utterance:
        """The next sentence."""
        return self.pool[self.numbers.pop()]

    def question(self, rng: np.random.Generator, texts: list[str]) -> Utterance | None:
        """A recording of one of the questions `texts`, of any duration."""
        return self.pool.question(rng, texts)

    def command(self, rng: np.random.Generator) -> Utterance | None:
        """A spoken request for a picture, of any duration."""
        return self.pool.command(rng)


class PerceptionData(SeededBatches):
    """Item `step` is {modality: batch}. One item in three is for SANM, the others for Whisper, which learns later."""

    def __init__(self, processor, pool: SpeechPool, steps: int, seed: int, scale: float = 1.0, max_side: int = 192):
        super().__init__(steps, 1, seed)  # `MIX` says how many chats are in a batch
        self.processor, self.pool = processor, pool
        self.scale, self.max_side = scale, max_side

    def __getitem__(self, step: int) -> dict[str, dict[str, torch.Tensor]]:
        rng = self.rng(step)
        batches = {}
        for modality, (rows, count) in MIX.items():
            count = max(1, round(self.scale * count))
            speaker = SameDuration(self.pool, rng, count) if modality == "speech" else self.pool
            samples = [
                sample_chat(choose(rng, rows), rng, "train", speaker, dense=True, max_side=self.max_side)
                for _ in range(count)
            ]
            chats = [vary_order(sample.messages, rng) for sample in samples]
            use_whisper = step % 3 != 0
            batch = chat_batch(self.processor, chats, use_whisper_encoder=use_whisper)
            batch["dense"] = dense_labels(samples, self.processor.tokenizer, batch, use_whisper_encoder=use_whisper)
            batches[modality] = batch
        return batches
