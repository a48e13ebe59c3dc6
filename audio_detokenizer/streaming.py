"""Speech codes to waveform while more codes are still to come.

Shape letters: L codes, T mel frames, M mel channels, S samples, H harmonics.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from .compiled_parts import Parts
from .configuration_audio_detokenizer import AudioDetokenizerConfig
from .inputs import code_row
from .modeling_flow import nearest_tokens
from .modeling_hift import HiFT
from .noise import FrameNoise

if TYPE_CHECKING:
    from .modeling_audio_detokenizer import AudioDetokenizer


class DetokenizerStream:
    """One utterance, decoded in chunks; made by `AudioDetokenizer.stream`.

    A chunk is decoded as soon as its codes and `look_ahead` more have arrived. The flow sees the chunk with
    `left_context` codes before it and the look-ahead after it, and with the noise that its frames have in
    `AudioDetokenizer.decode`. Of the mel of the look-ahead, `vocoder_context` frames are kept for the next chunk, and
    `mel_fade` further frames fade into the mel of that chunk. The vocoder therefore sees final mel on both sides of
    its output, at least as much as the output depends on. The pitch of a frame is predicted once, its source signal
    continues with exact phase, and the waveforms are cross-faded after a joint (which only matters with smaller
    contexts). Chunks grow, so that the flow runs over little more than the codes themselves: playing a chunk must
    last as long as decoding the next one, which is `growth` times longer. The first chunk may take fewer steps of the
    flow's solver (`first_chunk_steps`), because the listener waits for it.

    How close to `decode` this is:
    - The number of samples is the same, and equal codes give equal samples however they are pushed.
    - The waveform equals, to 1e-4, what the vocoder makes of the stream's mel as a whole: joints cannot be heard.
    - The mel equals that of `decode`, to rounding, if the utterance ends before the look-ahead of the first chunk.
      Otherwise it differs: attention and group norms of the flow see a window instead of the whole, and codes are
      assigned to frames by the length known so far (at most one code off, which is most of the difference). With the
      goldens' random weights and random codes, the hardest case, the root mean square of the difference is 13 % (4 s
      of speech) to 18 % (10 s) of the standard deviation of the mel, and 24 to 25 % within 0.3 s after a joint; with
      Ming-Tiny's weights and real codes it is 15 % of the standard deviation of the log-mel spectrogram, in the first
      0.16 s as elsewhere. The pitch follows the mel, so phases drift apart and waveforms cannot be compared sample by
      sample. It was not measured with the released weights.
    """

    def __init__(
        self,
        detokenizer: "AudioDetokenizer",
        speaker: torch.Tensor,
        prompt: tuple[torch.Tensor, int],
        generators: list[torch.Generator],
        settings: dict[str, Any],
        num_steps: int | None,
        parts: Parts | None = None,
    ):
        """Start an utterance.

        Args:
            detokenizer: the model that decodes.
            speaker: speaker embedding [1, 192], on the model's device.
            prompt: its codes int64 [P], and the number of mel frames to cut from the result.
            generators: one for the noise of the flow and one for the vocoder, on the CPU.
            settings: all entries of `config.streaming`.
            num_steps: Euler steps of the flow; None takes the configured number.
            parts: in the places of the detokenizer's own ones.
        """
        self.detokenizer = detokenizer
        self.estimator = parts.estimator if parts else None
        self.render = parts.vocoder if parts else detokenizer.hift.render
        self.config: AudioDetokenizerConfig = detokenizer.config
        self.speaker = speaker
        self.settings = settings
        self.num_steps = num_steps
        self.finished = False

        prompt_codes, self.origin = prompt
        device = detokenizer.device
        self.codes = prompt_codes.to(device)
        self.num_prompt_codes = len(prompt_codes)
        self.chunk_size = settings["first_chunk"]
        self.chunk_end = len(prompt_codes)  # codes decoded so far, including those of the prompt
        self.frame = self.origin  # the frame at which the next chunk starts

        mel_width = self.config.flow["output_size"]
        self.flow_noise = FrameNoise(generators[0], mel_width)
        self.phase, self.source_noise = detokenizer.draw_source(generators[1])
        self.phase = self.phase[None].to(device)
        # The next chunk needs the last frames of this one with their pitch, the cycles of the harmonics before them,
        # and the mel and waveform that follow.
        self.past_mel = torch.zeros(1, mel_width, 0, device=device)
        self.past_f0 = torch.zeros(1, 0, device=device)
        self.cycles = torch.zeros_like(self.phase, dtype=torch.float64)
        self.next_mel = torch.zeros(1, mel_width, 0, device=device)
        self.next_waveform = torch.zeros(0, device=device)

    def push(self, codes: torch.Tensor) -> torch.Tensor:
        """Add codes [L], any number of them -> the waveform [S] that is ready, float32, perhaps empty.

        Raises:
            ValueError: codes out of range, or a stream that is finished.
        """
        self._check_open()
        codes = code_row(codes, self.config.flow["vocab_size"], "codes")
        self.codes = torch.cat([self.codes, codes.to(self.codes.device)])
        pieces = [self.next_waveform[:0]]
        while len(self.codes) >= (known := self.chunk_end + self.chunk_size + self.settings["look_ahead"]):
            is_first = self.frame == self.origin
            first_steps = self.settings["first_chunk_steps"]  # 0: as many as everywhere
            num_steps = first_steps if is_first and first_steps else self.num_steps
            pieces.append(self._decode_chunk(self.chunk_end + self.chunk_size, known, num_steps))
            self.chunk_end += self.chunk_size
            self.chunk_size = min(int(self.chunk_size * self.settings["growth"]), self.settings["max_chunk"])
        return torch.cat(pieces)

    def finish(self) -> torch.Tensor:
        """The rest of the waveform [S], empty if no code was pushed. Nothing can be pushed afterwards.

        Raises:
            ValueError: a stream that is finished.
        """
        self._check_open()
        self.finished = True
        if len(self.codes) == self.num_prompt_codes:
            return self.next_waveform[:0]
        return self._decode_chunk(len(self.codes), len(self.codes), self.num_steps)

    def _check_open(self):
        if self.finished:
            raise ValueError("the stream is finished; make a new one with AudioDetokenizer.stream")

    def _decode_chunk(self, end: int, known: int, num_steps: int | None) -> torch.Tensor:
        """Decode up to code `end` with the codes up to `known` in view -> waveform [S]."""
        stop, num_frames = self.config.num_frames(end), self.config.num_frames(known)
        if stop <= self.frame:
            return self.next_waveform[:0]
        with torch.no_grad():
            mel = self._decode_mel(known, num_frames, num_steps)  # from self.frame on
            mel = join(self.next_mel, mel, self.settings["vocoder_context"], self.settings["mel_fade"])
            in_view = mel[:, :, : stop - self.frame + self.settings["vocoder_context"]]
            waveform = self._vocode(in_view, stop - self.frame)

        waveform = join(self.next_waveform, waveform, 0, self.settings["crossfade"])
        hop = self.config.hop_length
        num_silent = self.detokenizer.num_silent_samples - (self.frame - self.origin) * hop
        waveform[: max(num_silent, 0)] = 0
        waveform, rest = waveform.split([(stop - self.frame) * hop, len(waveform) - (stop - self.frame) * hop])
        self.next_waveform = rest[: self.settings["crossfade"]]
        self.next_mel = mel[:, :, stop - self.frame :]
        self.frame = stop
        return waveform

    def _decode_mel(self, known: int, num_frames: int, num_steps: int | None) -> torch.Tensor:
        """Mel [1, M, num_frames - self.frame] of the window of codes that ends at `known`."""
        start = max(self.frame - self.config.num_frames(self.settings["left_context"]), 0)
        start -= start % self.detokenizer.flow.decoder.estimator.frame_multiple  # lower resolutions keep their grid
        device = self.codes.device
        # On the CPU, where the first of them can be read without waiting for the device.
        (tokens,) = nearest_tokens(torch.tensor([known]), torch.tensor([num_frames]), torch.arange(start, num_frames))
        first = int(tokens[0])
        noise = self.flow_noise(start, num_frames).T[None].to(device)
        mel = self.detokenizer.flow.window(
            self.codes[None, first:known], (tokens - first).to(device), self.speaker, noise, num_steps, self.estimator
        )
        return mel[:, :, self.frame - start :]

    def _vocode(self, mel: torch.Tensor, num_new: int) -> torch.Tensor:
        """Mel [1, M, T] from self.frame on, of which `num_new` frames are final -> waveform [T * hop].

        The waveform after the new frames lacks its right context and is only used to fade.
        """
        num_past, position = self.past_mel.shape[2], self.frame - self.origin
        context = torch.cat([self.past_mel, mel], dim=2)
        known_f0 = F.pad(self.past_f0, (0, mel.shape[2]), value=HiFT.UNKNOWN_F0)
        noise = self.source_noise(position - num_past, position + mel.shape[2])
        noise = self.detokenizer.shape_noise(noise)[None].to(mel.device)
        waveform, f0, cycles = self.render(context, self.phase, noise, known_f0, self.cycles)
        stop = num_past + num_new
        start = stop - min(self.settings["vocoder_context"], stop)
        self.past_mel, self.past_f0, self.cycles = context[:, :, start:stop], f0[:, start:stop], cycles[:, :, start]
        return waveform[0, num_past * self.config.hop_length :]


def join(before: torch.Tensor, after: torch.Tensor, hold: int, fade: int) -> torch.Tensor:
    """Two versions [..., N] and [..., N'] of the signal after a joint -> [..., N'].

    The result holds the first version for `hold` steps and fades into the second within `fade` steps; less of both
    where the first version is shorter.
    """
    length = min(before.shape[-1], after.shape[-1])
    hold = min(hold, length)
    fade = min(fade, length - hold)
    weight = torch.arange(1, fade + 1, device=after.device) / (fade + 1)
    faded = torch.lerp(before[..., hold : hold + fade], after[..., hold : hold + fade], weight)
    return torch.cat([before[..., :hold], faded, after[..., hold + fade :]], dim=-1)
