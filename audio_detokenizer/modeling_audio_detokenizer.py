"""The audio detokenizer: speech codes (50 a second) and a voice to a waveform, whole, in batches, or as a stream.

    detokenizer = AutoModel.from_pretrained(repository, subfolder="audio_detokenizer", trust_remote_code=True)
    (waveform,) = detokenizer.decode([codes], speaker_embedding, generator=torch.Generator().manual_seed(0))

State-dict names are the released ones below `flow.` and `hift.`.

Shape letters: B batch, L codes, P codes of the prompt, T mel frames, M mel channels, S samples.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.models.fastspeech2_conformer.modeling_fastspeech2_conformer import FastSpeech2ConformerAttention

from .configuration_audio_detokenizer import AudioDetokenizerConfig
from .inputs import Rows, code_rows, generator_rows, prompt_rows, speaker_rows, streaming_settings
from .modeling_flow import Flow
from .modeling_hift import HiFT
from .noise import FrameNoise, spawn_generators
from .streaming import DetokenizerStream

SILENCE_SECONDS = 0.02  # the start of every utterance, as released
NAMES_SHOWN = 8


class AudioDetokenizer(PreTrainedModel):
    config: AudioDetokenizerConfig
    config_class = AudioDetokenizerConfig
    main_input_name = "codes"
    _supports_sdpa = True
    _no_split_modules = ["EncoderLayer", "BasicTransformerBlock", "ResnetBlock", "ResidualBlock"]
    _keep_in_fp32_modules_strict = ["hift"]

    def __init__(self, config: AudioDetokenizerConfig):
        super().__init__(config)
        self.flow = Flow(config)
        self.hift = HiFT(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, FastSpeech2ConformerAttention):
            init.xavier_uniform_(module.pos_bias_u)
            init.xavier_uniform_(module.pos_bias_v)
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()

    @property
    def num_silent_samples(self) -> int:
        return int(self.config.sample_rate * SILENCE_SECONDS)

    # Loading

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *args,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **kwargs,
    ):
        """Library `from_pretrained` that refuses incomplete checkpoints instead of leaving layers random.

        Raises:
            ValueError: names missing from the checkpoint, unknown to the model, or of another shape (unless
                `ignore_mismatched_sizes`).
        """
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        shapes = [f"{name} {tuple(found)}, not {tuple(wanted)}" for name, found, wanted in info["mismatched_keys"]]
        report(
            pretrained_model_name_or_path,
            info["missing_keys"],
            info["unexpected_keys"],
            [] if ignore_mismatched_sizes else shapes,
        )
        return (model, info) if output_loading_info else model

    @classmethod
    def from_released(cls, directory: str | os.PathLike, dtype: torch.dtype = torch.float32) -> "AudioDetokenizer":
        """A detokenizer from the released files: `audio_detokenizer.yaml` with `flow.pt` and `hift.pt` beside it, or
        the same two as `.safetensors`. `dtype` is the flow's; the vocoder is always float32.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the yaml does not describe this model, or names or shapes of the weights do not fit it.
        """
        directory = Path(directory)
        config = AudioDetokenizerConfig.from_released_yaml(directory / "audio_detokenizer.yaml")
        with torch.device("meta"):
            model = cls(config)
        for part in ("flow", "hift"):
            path = directory / f"{part}.safetensors"
            if path.exists():
                tensors = load_file(path)
            else:
                path = path.with_suffix(".pt")
                tensors = torch.load(path, map_location="cpu", weights_only=True)
            module = getattr(model, part)
            wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
            common = wanted.keys() & tensors.keys()
            shapes = [
                f"{name} {tuple(tensors[name].shape)}, not {wanted[name]}"
                for name in common
                if tuple(tensors[name].shape) != wanted[name]
            ]
            report(path, wanted.keys() - common, tensors.keys() - common, shapes)
            tensors = {name: tensor.to(dtype if part == "flow" else torch.float32) for name, tensor in tensors.items()}
            module.load_state_dict(tensors, assign=True)
        return model.eval()

    # Speaking

    @torch.no_grad()
    def decode(
        self,
        codes: Rows,
        speaker_embedding: torch.Tensor,
        prompt_codes: Rows | None = None,
        prompt_mel: Rows | None = None,
        code_lengths: torch.Tensor | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator | None] | None = None,
        num_steps: int | None = None,
    ) -> list[torch.Tensor]:
        """Waveforms of whole utterances.

        Args:
            codes: rows [L] of speech codes, or [B, L] with `code_lengths`.
            speaker_embedding: [B, 192], any length, or [1, 192] for all rows.
            prompt_codes, prompt_mel: codes [P] and mel [T, M] of a recording of the voice, per row or one for all
                (a leading dimension of 1). Its frames are spoken along and cut off.
            generator: one per row (a row then sounds the same in any batch), one for all, or None: a fresh draw.
                PyTorch's global generator is never used.
            num_steps: Euler steps of the flow, if not the configured ones.

        Returns:
            A float32 waveform [S] per row at `config.sample_rate`; its first 20 ms are silent, as released.

        Raises:
            ValueError: codes out of range or none, or shapes that do not fit; before any work.
        """
        rows = code_rows(codes, code_lengths, self.config.flow["vocab_size"])
        speaker = speaker_rows(speaker_embedding, len(rows), self.config.flow["spk_embed_dim"]).to(self.device)
        prompts, cuts = prompt_rows(prompt_codes, prompt_mel, len(rows), self.config)
        generators = [spawn_generators(own, 2) for own in generator_rows(generator, len(rows))]

        spoken = [torch.cat([p.to(self.device), row.to(self.device)]) for p, row in zip(prompts, rows, strict=True)]
        frames = [self.config.num_frames(len(row)) for row in spoken]
        noise = [
            FrameNoise(own[0], self.config.flow["output_size"])(0, n)
            for own, n in zip(generators, frames, strict=True)
        ]
        mel = self.flow(
            nn.utils.rnn.pad_sequence(spoken, batch_first=True),
            torch.tensor([len(row) for row in spoken], device=self.device),
            speaker,
            nn.utils.rnn.pad_sequence(noise, batch_first=True).transpose(1, 2).to(self.device),
            num_steps,
        )
        mels = [row[:, cut:n] for row, cut, n in zip(mel, cuts, frames, strict=True)]
        return self.vocode(mels, [own[1] for own in generators])

    @torch.no_grad()
    def vocode(self, mels: list[torch.Tensor], generators: list[torch.Generator]) -> list[torch.Tensor]:
        """The vocoder alone: log-mels [M, T] -> waveforms [S], as in `decode`; a generator per row.

        Rows of one length are one batch, others run alone: every layer of the vocoder would have to be masked for a
        padded batch, and it is a fifth of the flow's work.
        """
        waveforms = {i: mel.new_zeros(0) for i, mel in enumerate(mels)}
        for length in {mel.shape[1] for mel in mels} - {0}:
            same = [i for i, mel in enumerate(mels) if mel.shape[1] == length]
            draws = [self.draw_source(generators[i]) for i in same]
            phase = torch.stack([phase for phase, _ in draws])
            noise = torch.stack([self.shape_noise(frame_noise(0, length)) for _, frame_noise in draws])
            batch = torch.stack([mels[i] for i in same])
            waveform = self.hift(batch, phase.to(self.device), noise.to(self.device))
            waveform[:, : self.num_silent_samples] = 0
            waveforms.update(zip(same, waveform, strict=True))
        return [waveforms[i] for i in range(len(mels))]

    def draw_source(self, generator: torch.Generator) -> tuple[torch.Tensor, FrameNoise]:
        """A row's initial phases [H] and the noise of its harmonics by frame."""
        phase = self.hift.draw_phase(generator)
        return phase, FrameNoise(generator, self.hift.m_source.num_harmonics * self.config.hop_length)

    def shape_noise(self, noise: torch.Tensor) -> torch.Tensor:
        """[T, H * hop] by frame -> [H, S] by harmonic."""
        return noise.unflatten(1, (-1, self.config.hop_length)).transpose(0, 1).flatten(1)

    def stream(
        self,
        speaker_embedding: torch.Tensor,
        prompt_codes: Rows | None = None,
        prompt_mel: Rows | None = None,
        generator: torch.Generator | None = None,
        num_steps: int | None = None,
        **settings,
    ) -> DetokenizerStream:
        """A stream of one utterance: push codes, get waveform; arguments as of `decode` with one row.

        `settings` replace single entries of `config.streaming`; see `DetokenizerStream` for how close to `decode`
        (with the same generator state) the result is.

        Raises:
            ValueError: unknown settings, or shapes that do not fit.
        """
        speaker = speaker_rows(speaker_embedding, 1, self.config.flow["spk_embed_dim"]).to(self.device)
        (prompt,), (cut,) = prompt_rows(prompt_codes, prompt_mel, 1, self.config)
        chosen = streaming_settings(self.config.streaming, settings)
        return DetokenizerStream(self, speaker, (prompt, cut), spawn_generators(generator, 2), chosen, num_steps)


def report(source, missing, unexpected, shapes) -> None:
    """Raise one ValueError that names what does not fit between a checkpoint and the model, if anything."""
    problems = {"missing keys": missing, "unexpected keys": unexpected, "wrong shapes": shapes}
    for problem, found in problems.items():
        if names := sorted(found):
            more = f", ... ({len(names)} in all)" if len(names) > NAMES_SHOWN else ""
            raise ValueError(
                f"{source}: {problem}: {', '.join(names[:NAMES_SHOWN])}{more}. "
                "The weights and their configuration do not belong together."
            )


__all__ = ["AudioDetokenizer"]
