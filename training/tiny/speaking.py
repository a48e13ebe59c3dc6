"""Stage 2a of Ming-Tiny: batches and losses of the talker, the flow and the vocoder; the thinker stays frozen.

The speech tokenizer and the speaker encoder (`stage_listeners`) are trained first. `HeardPool` keeps their outputs for
every utterance of the pool: its speech codes and its speaker embedding.
"""

import logging
import os
import re
from bisect import bisect_right
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from torchaudio.functional import resample
from tqdm import tqdm

from audio_detokenizer.modeling_audio_detokenizer import AudioDetokenizer
from ming.mel import prompt_mel, vocoder_mel
from ming.modeling_talker import BailingMMTalker
from ming.talker_processor import BailingMMTalkerProcessor
from ming.talker_steps import TalkerPrompt
from ming.training.chats import prompt_batch
from ming.training.flow import flow_matching_loss
from ming.training.loop import SeededBatches
from ming.training.objectives import IGNORE, ctc_loss, ctc_targets
from ming.training.talker import WordAlignment, pointing_loss, talker_batch, talker_loss, thinker_states
from ming.training.vocoder import Critics, adversarial_loss, critic_loss, mel_loss, pitch, spectral_loss
from ming.voices import CODES_PER_SECOND, MIN_SECONDS, VoiceEncoder

from .scenes import choose
from .speech import SAMPLE_RATE, SpeechPool
from .world import sample_chat

logger = logging.getLogger(__name__)

MAX_PROMPT_SECONDS = 4.0  # longest voice prompt; a longer one would leave no room for the speech itself
NUM_LENDERS = 3
NO_THINKER = 0.5  # share of batches without a chat
# Rows of the chats in the other batches: long recordings and pictures in a prompt must not distract from the text.
CHATS = ("text_only", "text_only", "image_qa", "asr_sanm", "spoken_question", "spoken_drawing", "editing")
MAX_CHAT_SIDE = 128  # pixels, of their pictures
# The talker starts with the shortest share of the utterances and gets all of them after this share of the steps: it
# learns which word comes next where there are few words.
SHORTEST, ALL_AFTER = 0.2, 0.5
# A talker that memorises its utterances needs no text. So the ids spoken so far are disturbed: codes are cut at random
# places, which the pairs of the codec do not cross, and up to a share of the input ids are replaced.
CUT_SHARE, MAX_NOISE = 0.15, 0.35
SPELLING_WEIGHT, POINTING_WEIGHT = 0.3, 0.5
POINTING_LAYERS = (1, 2, 3)  # of the talker; their first head points at the current word
SPELLING_LAYER = 2  # of the talker; a head after it spells the words spoken so far
COMMA_SHARE, CAPITAL_SHARE = 0.5, 0.3
MARKS = ("", "", "", ".", ",", "?")  # after the words of a piece
SEGMENT_FRAMES = 40  # mel frames (0.46 s) of a vocoder example
ADVERSARY_FROM = 0.7  # share of the steps after which the critics count
MEL_WEIGHT, MATCHING_WEIGHT, PITCH_WEIGHT = 15.0, 2.0, 0.05


def long_enough(waveform: torch.Tensor) -> torch.Tensor:
    """A recording [samples] at 16 kHz, padded with silence to the shortest length that a voice can be cloned from."""
    return F.pad(waveform, (0, max(0, int(MIN_SECONDS * SAMPLE_RATE) - len(waveform))))


def written(text: str, rng: np.random.Generator) -> str:
    """Spoken words as written in a reply: sometimes a capital, a comma before the background, a punctuation mark."""
    if rng.random() < COMMA_SHARE:
        text = re.sub(r" (on an? \w+ background)$", r", \1", text)
    if rng.random() < CAPITAL_SHARE:
        text = text[0].upper() + text[1:]
    return text + choose(rng, MARKS)


class HeardPool:
    """A speech pool with the codes (uint8 [N]) and the speaker embedding (float32 [192]) of every utterance.

    Raises:
        ValueError: the tensors were made from another pool.
    """

    def __init__(self, pool: SpeechPool, tensors: dict[str, torch.Tensor]):
        self.pool, self.embeddings = pool, tensors["embeddings"].float()
        lengths = tensors["lengths"].tolist()
        if len(lengths) != len(pool):
            raise ValueError(f"{len(lengths)} utterances are encoded, the pool has {len(pool)}; delete the file")
        self.codes = tensors["codes"].split(lengths)
        self.by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
        self.by_voice: dict[str, list[int]] = {}
        for index, record in enumerate(pool.records):
            self.by_voice.setdefault(record["voice"]["name"], []).append(index)

    @classmethod
    def build(cls, pool: SpeechPool, encoder: VoiceEncoder, path: str | os.PathLike) -> "HeardPool":
        """Encode the whole pool, or read the file of an earlier call."""
        path = Path(path)
        if not path.is_file():
            codes, embeddings = [], []
            for index in tqdm(range(len(pool)), desc="encoding", unit="utterance"):
                waveform = torch.from_numpy(pool[index].waveform)
                length = -(-len(waveform) * CODES_PER_SECOND // SAMPLE_RATE)
                waveform = long_enough(waveform)
                codes.append(encoder.encode_codes(waveform)[:length].to(torch.uint8))
                embeddings.append(encoder.embed(waveform))
            lengths = torch.tensor([len(row) for row in codes])
            tensors = {"codes": torch.cat(codes), "lengths": lengths, "embeddings": torch.stack(embeddings).half()}
            partial = path.with_suffix(".partial")
            save_file(tensors, partial)
            partial.replace(path)
        return cls(pool, load_file(path))

    def __len__(self) -> int:
        return len(self.pool)

    def text(self, index: int) -> str:
        """The words of an utterance."""
        return self.pool.records[index]["text"]

    def lenders(self, target: int, longest: float = MAX_PROMPT_SECONDS * CODES_PER_SECOND) -> list[int]:
        """Utterances for the voice prompt of `target`: its voice, and the nearest pitch and speed.

        They have at most `longest` codes; `target` itself is returned only if there is no other.
        """
        records = self.pool.records
        own = records[target]["voice"]

        def distance(index: int) -> float:
            other = records[index]["voice"]
            return abs(other["pitch"] - own["pitch"]) / 60 + abs(other["speed"] - own["speed"]) / 100

        others = [
            index for index in self.by_voice[own["name"]] if index != target and len(self.codes[index]) <= longest
        ]
        return sorted(others, key=distance)[:NUM_LENDERS] or [target]


class FlowData(SeededBatches):
    """Item `step`: codes, speaker embedding and mel of whole utterances, as `flow_matching_loss` takes them."""

    def __init__(self, heard: HeardPool, config, steps: int, batch_size: int, seed: int):
        super().__init__(steps, batch_size, seed)
        self.heard, self.config = heard, config

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        rng = self.rng(step)
        chosen = self.heard.pool.alike(rng, self.batch_size)
        codes, mels = [self.heard.codes[index].long() for index in chosen], []
        for index, row in zip(chosen, codes, strict=True):
            mel = prompt_mel(torch.from_numpy(self.heard.pool[index].waveform))
            frames = self.config.num_frames(len(row))
            mels.append(F.pad(mel[:frames], (0, 0, 0, max(0, frames - len(mel))), value=mel.min().item()))
        return {
            "codes": nn.utils.rnn.pad_sequence(codes, batch_first=True),
            "code_lengths": torch.tensor([len(row) for row in codes]),
            "mel": nn.utils.rnn.pad_sequence(mels, batch_first=True),
            "mel_lengths": torch.tensor([len(mel) for mel in mels]),
            "speaker_embedding": self.heard.embeddings[chosen],
        }


class FlowTask(nn.Module):
    """Trains the flow of a detokenizer; the loss is `flow_matching_loss`."""

    def __init__(self, detokenizer: AudioDetokenizer):
        super().__init__()
        self.flow = detokenizer.flow

    def forward(self, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": flow_matching_loss(self.flow, batch)}


class VocoderData(SeededBatches):
    """Item `step`: short parts of recordings [B, S] at the rate of the vocoder, and whether the critics count."""

    def __init__(self, pool: SpeechPool, config, steps: int, batch_size: int, seed: int):
        super().__init__(steps, batch_size, seed)
        self.pool, self.config = pool, config

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        rng = self.rng(step)
        size, parts = SEGMENT_FRAMES * self.config.hop_length, []
        for _ in range(self.batch_size):
            waveform = torch.from_numpy(self.pool[int(rng.integers(len(self.pool)))].waveform)
            source = -(-size * SAMPLE_RATE // self.config.sample_rate) + 64
            waveform = F.pad(waveform, (0, max(0, source - len(waveform))))
            start = int(rng.integers(len(waveform) - source + 1))
            part = resample(waveform[start : start + source], SAMPLE_RATE, self.config.sample_rate)[:size]
            parts.append(part * float(rng.uniform(0.5, 1.0)) / part.abs().max().clamp_min(0.1))
        return {"waveform": torch.stack(parts), "adversary": torch.tensor(float(step >= ADVERSARY_FROM * self.steps))}


class VocoderTask(nn.Module):
    """Trains the vocoder of a detokenizer on recordings: mel, spectra, pitch, and from some step on critics."""

    def __init__(self, detokenizer: AudioDetokenizer, channels: int = 8):
        super().__init__()
        self.hift, self.config = detokenizer.hift, detokenizer.config
        self.heads = nn.ModuleDict({"critics": Critics(channels)})

    def vocode(self, mel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mel [B, 80, T] -> waveform [B, S] and pitch [B, T], with gradients."""
        f0 = self.hift.f0_predictor(mel)
        phase = torch.stack([self.hift.draw_phase(None) for _ in mel]).to(mel.device)
        noise = torch.randn(len(mel), self.hift.m_source.num_harmonics, mel.shape[2] * self.config.hop_length)
        source, _ = self.hift.m_source(f0, phase, noise.to(mel.device))
        return self.hift.decode(mel, source), f0

    def forward(self, waveform: torch.Tensor, adversary: torch.Tensor) -> dict[str, torch.Tensor]:
        mel = vocoder_mel(waveform).transpose(1, 2)
        output, f0 = self.vocode(mel)
        target_f0 = pitch(waveform, self.config.sample_rate, self.config.hop_length)
        parts = {
            "mel": mel_loss(output, waveform),
            "spectral": spectral_loss(output, waveform),
            "pitch": F.smooth_l1_loss(f0, target_f0, beta=10.0),
        }
        loss = MEL_WEIGHT * parts["mel"] + parts["spectral"] + PITCH_WEIGHT * parts["pitch"]
        if adversary:
            critics = self.heads["critics"]
            critics.requires_grad_(False)
            score, matching = adversarial_loss(critics, output, waveform)
            critics.requires_grad_(True)
            parts["critic"] = critic_loss(critics, output, waveform)
            loss = loss + score + MATCHING_WEIGHT * matching + parts["critic"]
        return {"loss": loss, **{name: value.detach() for name, value in parts.items()}}


class TalkerData(SeededBatches):
    """Item `step`: texts, each in the voice of another utterance of the same speaker; some batches answer chats.

    "talker" is a batch of `talker_batch`, "spelling" the words of both utterances in the talker's tokens for
    `ctc_loss`, and "chats", if present, the inputs of the thinker.

    Args:
        short_first: start with short utterances; a trained talker gets utterances of every length from the start.
    """

    def __init__(
        self,
        heard: HeardPool,
        talker: BailingMMTalker,
        talker_processor: BailingMMTalkerProcessor,
        chat_processor,
        steps: int,
        batch_size: int,
        seed: int,
        short_first: bool = True,
    ):
        super().__init__(steps, batch_size, seed)
        self.heard, self.talker, self.short_first = heard, talker, short_first
        self.talker_processor, self.chat_processor = talker_processor, chat_processor

    def __getitem__(self, step: int) -> dict:
        rng = self.rng(step)
        done = step / (ALL_AFTER * self.steps) if self.short_first else 1.0
        share = SHORTEST + (1 - SHORTEST) * min(1.0, done)
        shortest = self.heard.by_length[: int(share * len(self.heard))]
        targets = self.heard.pool.alike(rng, self.batch_size, shortest)
        longest = min(len(self.heard.codes[shortest[-1]]), MAX_PROMPT_SECONDS * CODES_PER_SECOND)
        lenders = [choose(rng, self.heard.lenders(target, longest)) for target in targets]
        chats = {} if rng.random() < NO_THINKER else {"chats": self._chats(rng)}
        states: list[torch.Tensor | None] = [None] * self.batch_size
        if chats:
            # Only the number of states matters here; the task computes their values.
            lengths = chats["chats"]["attention_mask"].sum(dim=1).tolist()
            states = [torch.zeros(length, self.talker.config.qa_model_hidden_size) for length in lengths]
        pairs = list(zip(lenders, targets, strict=True))
        examples = [self._example(rng, pair, row) for pair, row in zip(pairs, states, strict=True)]
        batch = self._disturb(rng, talker_batch(self.talker, *(list(part) for part in zip(*examples, strict=True))))
        tokenizer = self.talker_processor.tokenizer
        words = [
            [token for index in pair for token in tokenizer(" " + self.heard.text(index))["input_ids"]]
            for pair in pairs
        ]
        return {"talker": batch, "spelling": ctc_targets(words), **chats}

    def _disturb(self, rng: np.random.Generator, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Replace a random share of the input ids of every row; the labels stay."""
        ids, first = batch["audio_ids"], self.talker.config.text_vocab_size
        shares = rng.uniform(0.0, MAX_NOISE, (len(ids), 1))
        hit = torch.from_numpy(rng.random(ids.shape) < shares) & (ids >= first)
        others = torch.from_numpy(rng.integers(first, self.talker.config.vocab_size, ids.shape))
        return {**batch, "audio_ids": torch.where(hit, others, ids)}

    def _chats(self, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        kinds = [choose(rng, CHATS) for _ in range(self.batch_size)]
        chats = [sample_chat(kind, rng, "train", self.heard.pool, max_side=MAX_CHAT_SIDE) for kind in kinds]
        return dict(prompt_batch(self.chat_processor, [chat.messages[:1] for chat in chats]))

    def _codec_ids(self, rng: np.random.Generator, index: int) -> torch.Tensor:
        """The codes of an utterance as codec ids, cut at random places."""
        codes = self.heard.codes[index].long()
        cuts = np.flatnonzero(rng.random(len(codes)) < CUT_SHARE)
        pieces = codes.tensor_split(torch.from_numpy(cuts))
        encode = self.talker_processor.codec_bpe.encode
        return torch.tensor([unit for piece in pieces if len(piece) for unit in encode(piece)])

    def _example(
        self, rng: np.random.Generator, pair: tuple[int, int], states: torch.Tensor | None
    ) -> tuple[TalkerPrompt, torch.Tensor, WordAlignment]:
        """The text of the second utterance of the pair, to be spoken in the voice of the first."""
        text: list[int] = []
        tokens: list[int] = []
        spoken: list[int] = []
        codec_ids = [self._codec_ids(rng, index) for index in pair]
        for index, ids in zip(pair, codec_ids, strict=True):
            words = written(self.heard.text(index), rng)
            encoded = self.talker_processor.tokenizer(words, return_offsets_mapping=True)
            starts, first = self.heard.pool.records[index]["starts"], max(tokens, default=-1) + 1
            text += encoded["input_ids"]
            tokens += [first + word for word in token_words(self.heard.text(index), words, encoded, starts)]
            lengths = self.talker_processor.codec_bpe.lengths[ids]
            seconds = (lengths.cumsum(dim=0) - lengths / 2) / CODES_PER_SECOND
            begins = [second for _, second in starts]
            spoken += [first + max(0, bisect_right(begins, second) - 1) for second in seconds.tolist()]
        prompt_ids, target = codec_ids
        prompt = TalkerPrompt(torch.tensor(text), prompt_ids, self.heard.embeddings[pair[0]], states)
        return prompt, target, WordAlignment(tokens, spoken)


def token_words(spoken: str, text: str, encoded, starts: list[tuple[int, float]]) -> list[int]:
    """For every token of a text the index of its word in `starts`.

    Args:
        spoken: the spoken words; `text` is `written(spoken)`, the same words between the same spaces.
        encoded: the tokens of the text with their "offset_mapping".
        starts: (character of `spoken`, second); a word without a start belongs to the one before it.
    """
    begins = [character for character, _ in starts]
    places = [0] + [place + 1 for place, letter in enumerate(spoken) if letter == " "]
    groups = [max(0, bisect_right(begins, place) - 1) for place in places]
    return [groups[text.count(" ", 0, end)] for _, end in encoded["offset_mapping"]]


class TalkerTask(nn.Module):
    """Trains a talker on the states of a frozen thinker.

    Beside the loss on the next id, the first attention head of the middle layers learns to point at the current word,
    and a head for training only spells the words spoken so far.
    """

    def __init__(self, talker: BailingMMTalker, thinker: nn.Module):
        super().__init__()
        self.talker = talker
        self.heads = nn.ModuleDict(
            {"spelling": nn.Linear(talker.config.llm_config.hidden_size, talker.config.text_vocab_size + 1)}
        )
        self.frozen = [thinker]  # in a list: not a submodule, so neither trained nor saved with this module

    def forward(
        self,
        talker: dict[str, torch.Tensor],
        spelling: dict[str, torch.Tensor],
        chats: dict[str, torch.Tensor] | None = None,
    ) -> dict[str, torch.Tensor]:
        batch = dict(talker)
        if chats is not None:
            batch["thinker_states"] = thinker_states(self.frozen[0], chats).to(batch["thinker_states"].dtype)
        loss, hidden_states = talker_loss(self.talker, batch)
        spoken = (batch["labels"] != IGNORE).sum(dim=1)  # rows are left-padded: the spoken ids are last
        logits = self.heads["spelling"](
            F.normalize(hidden_states[SPELLING_LAYER], dim=-1) * hidden_states[0].shape[-1] ** 0.5
        )
        rows = [row[-length:] for row, length in zip(logits, spoken.tolist(), strict=True)]
        words = ctc_loss(nn.utils.rnn.pad_sequence(rows, batch_first=True), spoken, **spelling)
        pointing = torch.stack(
            [pointing_loss(self.talker, hidden_states[layer], batch, layer) for layer in POINTING_LAYERS]
        )
        parts = {"next_id": loss.detach(), "spelling": words.detach(), "pointing": pointing[-1].detach()}
        return {"loss": loss + SPELLING_WEIGHT * words + POINTING_WEIGHT * pointing.mean(), **parts}
