"""Audio as it is sent: waveforms, whole or chunk by chunk -> wav or raw pcm, or whole -> flac; 16 bit, one channel.

A flac begins with its length. It could be left open, but then soundfile takes it for one of 400 million years.

Shape letter: N samples.
"""

import struct

import torch

from ming.encoding import encode_audio, to_pcm16

MIME_TYPES = {"wav": "audio/wav", "pcm": "audio/pcm", "flac": "audio/flac"}
UNKNOWN_SIZE = 0xFFFFFFFF  # in a wav header: until the end of the stream


def encode(waveform: torch.Tensor, rate: int, audio_format: str) -> bytes:
    """A whole waveform [N] at `rate` Hz as a file ("wav", "flac") whose header has the length, or samples ("pcm")."""
    if audio_format == "pcm":
        return to_pcm16(waveform).tobytes()
    return encode_audio(waveform, rate, audio_format)


def open_wav_header(rate: int) -> bytes:
    """Header of a 16-bit wav with one channel at `rate` Hz whose length is not known yet; no library writes one."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", UNKNOWN_SIZE, b"WAVE") + form + struct.pack("<4sI", b"data", UNKNOWN_SIZE)


class PcmEncoder:
    """Raw samples at `rate` Hz."""

    def __init__(self, rate: int):
        self.rate = rate

    def push(self, waveform: torch.Tensor) -> bytes:
        """The bytes of the next waveform [N]."""
        return to_pcm16(waveform).tobytes()


class WavEncoder(PcmEncoder):
    """A wav whose header leaves the length open."""

    def __init__(self, rate: int):
        super().__init__(rate)
        self.header = open_wav_header(rate)

    def push(self, waveform: torch.Tensor) -> bytes:
        header, self.header = self.header, b""
        return header + super().push(waveform)


STREAMED = {"wav": WavEncoder, "pcm": PcmEncoder}

__all__ = ["MIME_TYPES", "STREAMED", "PcmEncoder", "WavEncoder", "encode"]
