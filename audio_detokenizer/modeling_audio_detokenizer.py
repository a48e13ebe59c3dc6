"""The audio detokenizer: speech codes (50 per second) and a voice to a waveform, whole, in batches, or as a stream.

    detokenizer = AutoModel.from_pretrained(repository, subfolder="audio_detokenizer", trust_remote_code=True)
    (waveform,) = detokenizer.decode([codes], speaker_embedding, generator=torch.Generator().manual_seed(0))

State-dict names are the released ones below `flow.` and `hift.`.

Shape letters: B batch, L codes, P codes of the prompt, T mel frames, M mel channels, S samples.
"""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import nn
from transformers import CompileConfig, PreTrainedModel
from transformers import initialization as init
from transformers.models.fastspeech2_conformer.modeling_fastspeech2_conformer import FastSpeech2ConformerAttention

from .compiled_parts import PartGraphs, Parts, padded_lengths, raise_if_not_compilable
from .configuration_audio_detokenizer import AudioDetokenizerConfig
from .inputs import Rows, code_rows, generator_rows, prompt_rows, raise_if_no_steps, speaker_rows, streaming_settings
from .modeling_flow import Flow
from .modeling_hift import HiFT
from .noise import FrameNoise, spawn_generators
from .streaming import DetokenizerStream

SILENCE_SECONDS = 0.02  # the start of every utterance, as released
NAMES_SHOWN = 8


class AudioDetokenizer(PreTrainedModel):
    """Speech codes -> waveforms, of whole utterances and as streams.

    Attributes:
        graphs: what is kept for compiled parts.
        together: computes for several callers in one pass, as a server does; None: each call computes by itself.
    """

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
        self.graphs = PartGraphs()
        self.together: Parts | None = None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, FastSpeech2ConformerAttention):
            init.xavier_uniform_(module.pos_bias_u)
            init.xavier_uniform_(module.pos_bias_v)
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()

    @property
    def device(self) -> torch.device:
        """Where inputs belong, also when the weights are offloaded."""
        layer = self.flow.spk_embed_affine_layer
        with align_module_device(layer):  # offloaded weights are fetched to where it computes
            return layer.weight.device

    @property
    def num_silent_samples(self) -> int:
        """Samples at the start of every utterance that are set to zero."""
        return int(self.config.sample_rate * SILENCE_SECONDS)

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
        raise_if_incomplete(pretrained_model_name_or_path, info, ignore_mismatched_sizes)
        return (model, info) if output_loading_info else model

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
        compile: bool | CompileConfig = False,
    ) -> list[torch.Tensor]:
        """Waveforms of whole utterances.

        Args:
            codes: rows [L] of speech codes, or [B, L] with `code_lengths`.
            speaker_embedding: [B, 192], of any norm, or [1, 192] for all rows.
            prompt_codes, prompt_mel: codes [P] and mel [T, M] of a recording of the voice, per row or one for all
                (a leading dimension of 1). Their frames are decoded in front of each row and cut off.
            code_lengths: [B], how many codes of each row count.
            generator: one per row (a row then sounds the same in any batch), one for all, or None: a fresh draw.
                PyTorch's global generator is never used.
            num_steps: Euler steps of the flow; None takes the configured number.
            compile: whether the flow's velocity network and the vocoder are compiled, into one graph for each of few
                lengths, and that of the network for each number of rows; a `CompileConfig` says how. The first call of
                a size waits for the compiler.

        Returns:
            A float32 waveform [S] per row at `config.sample_rate`; its first 20 ms are silent, as released.

        Raises:
            ValueError: codes out of range or none, no steps, shapes that do not fit, or `compile` with a model that
                does not compile; before any work.
            TypeError: `compile` is neither a flag nor a `CompileConfig`, or an argument is of another kind.
        """
        raise_if_no_steps(num_steps)
        parts = self.parts(compile)
        rows = code_rows(codes, code_lengths, self.config.flow["vocab_size"])
        speaker = speaker_rows(speaker_embedding, len(rows), self.config.flow["spk_embed_dim"]).to(self.device)
        prompts, cuts = prompt_rows(prompt_codes, prompt_mel, len(rows), self.config)
        generators = [spawn_generators(own, 2) for own in generator_rows(generator, len(rows))]

        sequences = [torch.cat([p.to(self.device), row.to(self.device)]) for p, row in zip(prompts, rows, strict=True)]
        frames = [self.config.num_frames(len(row)) for row in sequences]
        noise = [
            FrameNoise(own[0], self.config.flow["output_size"])(0, n)
            for own, n in zip(generators, frames, strict=True)
        ]
        mel = self.flow(
            nn.utils.rnn.pad_sequence(sequences, batch_first=True),
            torch.tensor([len(row) for row in sequences], device=self.device),
            speaker,
            nn.utils.rnn.pad_sequence(noise, batch_first=True).transpose(1, 2).to(self.device),
            num_steps,
            parts.estimator if parts else None,
        )
        mels = [row[:, cut:n] for row, cut, n in zip(mel, cuts, frames, strict=True)]
        return self.vocode(mels, [own[1] for own in generators], compile)

    @torch.no_grad()
    def vocode(
        self,
        mels: list[torch.Tensor],
        generators: list[torch.Generator],
        compile: bool | CompileConfig = False,
    ) -> list[torch.Tensor]:
        """The vocoder alone: log-mels [M, T] -> waveforms [S], as in `decode`; a generator per row.

        Rows of equal length run as one batch, other rows alone, since padding would be work. Compiled, each row runs
        alone: so whole utterances and streams have the same graphs.
        """
        parts = self.parts(compile)
        render = parts.vocoder if parts else self.hift.render
        groups: dict[tuple[int, int], list[int]] = {}
        for i, mel in enumerate(mels):
            groups.setdefault((mel.shape[1], i if parts else 0), []).append(i)
        waveforms = {i: mel.new_zeros(0) for i, mel in enumerate(mels)}
        for (length, _), same in groups.items():
            if not length:
                continue
            draws = [self.draw_source(generators[i]) for i in same]
            phase = torch.stack([phase for phase, _ in draws])
            noise = torch.stack([self.shape_noise(frame_noise(0, length)) for _, frame_noise in draws])
            batch = torch.stack([mels[i] for i in same])
            waveform, _, _ = render(batch, phase.to(self.device), noise.to(self.device))
            waveform[:, : self.num_silent_samples] = 0
            waveforms.update(zip(same, waveform, strict=True))
        return [waveforms[i] for i in range(len(mels))]

    def draw_source(self, generator: torch.Generator) -> tuple[torch.Tensor, FrameNoise]:
        """Initial phases [H] of a row, and the noise of its harmonics by frame."""
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
        compile: bool | CompileConfig = False,
        **settings,
    ) -> DetokenizerStream:
        """Start one utterance whose codes are pushed into the returned stream; arguments as of `decode` with one row.

        `settings` replace single entries of `config.streaming`. `DetokenizerStream` says how close the result is to
        that of `decode` with the same generator state.

        Raises:
            ValueError: unknown settings, shapes that do not fit, or `compile` with a model that does not compile.
            TypeError: `compile` is neither a flag nor a `CompileConfig`.
        """
        raise_if_no_steps(num_steps)
        parts = self.parts(compile)
        speaker = speaker_rows(speaker_embedding, 1, self.config.flow["spk_embed_dim"]).to(self.device)
        (prompt,), (cut,) = prompt_rows(prompt_codes, prompt_mel, 1, self.config)
        chosen = streaming_settings(self.config.streaming, settings)
        (own,) = generator_rows(generator, 1)
        generators = spawn_generators(own, 2)
        return DetokenizerStream(self, speaker, (prompt, cut), generators, chosen, num_steps, parts)

    def padded_lengths(self, most: int) -> list[int]:
        """All lengths in frames that up to so many frames are padded to where `compile` is asked for."""
        return padded_lengths(most)

    def parts(self, compile: bool | CompileConfig = False) -> Parts | None:
        """What computes in the places of the own velocity network and vocoder, compiled or not; None: these do.

        Raises:
            ValueError, TypeError: see `decode`.
        """
        estimator = self.flow.decoder.estimator
        raise_if_not_compilable(compile, estimator, self.hift)
        if self.together is not None:
            return self.together
        return self.graphs.of(estimator, self.hift, compile, self.device) if compile else None


# The other component has a copy: each is a folder that loads alone and imports nothing outside of it.
def raise_if_incomplete(source: Any, info: dict[str, Any], ignore_mismatched_sizes: bool = False) -> None:
    """Raise a ValueError that names what does not fit between a checkpoint and the model, if anything.

    `info` is the library's loading info: `missing_keys`, `unexpected_keys`, and `mismatched_keys` as (name, shape in
    the checkpoint, shape in the model).
    """
    shapes = [f"{name} {tuple(found)}, not {tuple(wanted)}" for name, found, wanted in info["mismatched_keys"]]
    problems = {
        "missing keys": info["missing_keys"],
        "unexpected keys": info["unexpected_keys"],
        "wrong shapes": [] if ignore_mismatched_sizes else shapes,
    }
    for problem, found in problems.items():
        if names := sorted(found):
            more = f", ... ({len(names)} in all)" if len(names) > NAMES_SHOWN else ""
            raise ValueError(
                f"{source}: {problem}: {', '.join(names[:NAMES_SHOWN])}{more}. "
                "The checkpoint and its config.json do not belong together."
            )


__all__ = ["AudioDetokenizer"]
