"""Audio as it is sent: waveforms, whole or chunk by chunk -> a wav, flac or raw pcm stream, 16 bit, one channel.

Shape letter: N samples.
"""

import io
import struct

import soundfile
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

    def finish(self) -> bytes:
        """The bytes after the last waveform."""
        return b""


class WavEncoder(PcmEncoder):
    """A wav whose header leaves the length open."""

    def __init__(self, rate: int):
        super().__init__(rate)
        self.header = open_wav_header(rate)

    def push(self, waveform: torch.Tensor) -> bytes:
        header, self.header = self.header, b""
        return header + super().push(waveform)


class FlacEncoder(PcmEncoder):
    """A flac whose header leaves the length open."""

    def __init__(self, rate: int):
        super().__init__(rate)
        self.pipe = ForwardOnlyFile()
        self.file = soundfile.SoundFile(self.pipe, "w", rate, channels=1, format="FLAC", subtype="PCM_16")

    def push(self, waveform: torch.Tensor) -> bytes:
        self.file.write(to_pcm16(waveform))
        return self.pipe.take()

    def finish(self) -> bytes:
        self.file.close()
        return self.pipe.take()


class ForwardOnlyFile(io.RawIOBase):
    """A file whose content is sent at once: `take` returns what was appended since the last call.

    Bytes that are written before the end are dropped, since they were sent: libsndfile goes back to write the length
    into the header.
    """

    def __init__(self):
        super().__init__()
        self.position, self.end = 0, 0
        self.data = bytearray()

    def write(self, data) -> int:
        if self.position == self.end:
            self.data += data
            self.end += len(data)
        self.position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.end}[whence]
        return self.position

    def tell(self) -> int:
        return self.position

    def take(self) -> bytes:
        """What was appended since the last call."""
        data, self.data = bytes(self.data), bytearray()
        return data


ENCODERS = {"wav": WavEncoder, "pcm": PcmEncoder, "flac": FlacEncoder}

__all__ = ["ENCODERS", "MIME_TYPES", "FlacEncoder", "PcmEncoder", "WavEncoder", "encode"]
