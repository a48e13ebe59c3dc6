"""Sound as it is sent: waveforms piece by piece -> bytes of a wav, flac or bare pcm stream, 16 bit, one channel."""

import io
import struct

import numpy as np
import soundfile
import torch

FORMATS = {"wav": "audio/wav", "pcm": "audio/pcm", "flac": "audio/flac"}
UNKNOWN_SIZE = 0xFFFFFFFF  # in a wav header: until the end of the stream
FULL_SCALE = np.iinfo(np.int16).max


def to_pcm(waveform: torch.Tensor) -> np.ndarray:
    """A waveform [N] within -1 and 1 -> little-endian 16-bit samples [N]."""
    return (waveform.float().cpu().clamp(-1, 1) * FULL_SCALE).round().numpy().astype("<i2")


def wav_header(rate: int, num_bytes: int | None = None) -> bytes:
    """Header of a 16-bit wav of one channel at `rate` Hz; without the number of its bytes, of a stream."""
    riff_size, data_size = (UNKNOWN_SIZE, UNKNOWN_SIZE) if num_bytes is None else (num_bytes + 36, num_bytes)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", riff_size, b"WAVE") + form + struct.pack("<4sI", b"data", data_size)


class PcmStream:
    """Bare samples."""

    def __init__(self, rate: int):
        self.rate = rate

    def push(self, waveform: torch.Tensor) -> bytes:
        """Bytes of more sound."""
        return to_pcm(waveform).tobytes()

    def finish(self) -> bytes:
        """Bytes behind the last sound."""
        return b""


class WavStream(PcmStream):
    """A wav whose header leaves the length open."""

    def __init__(self, rate: int):
        super().__init__(rate)
        self.header = wav_header(rate)

    def push(self, waveform: torch.Tensor) -> bytes:
        header, self.header = self.header, b""
        return header + super().push(waveform)


class FlacStream(PcmStream):
    """A flac whose header leaves the length open."""

    def __init__(self, rate: int):
        super().__init__(rate)
        self.pipe = ForwardOnly()
        self.file = soundfile.SoundFile(self.pipe, "w", rate, channels=1, format="FLAC", subtype="PCM_16")

    def push(self, waveform: torch.Tensor) -> bytes:
        self.file.write(to_pcm(waveform))
        return self.pipe.take()

    def finish(self) -> bytes:
        self.file.close()
        return self.pipe.take()


class ForwardOnly(io.RawIOBase):
    """A file of which everything was sent already: what is written behind its end is kept to be taken; an encoder
    that goes back to complete its header does so in vain."""

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
        """What came since the last time."""
        data, self.data = bytes(self.data), bytearray()
        return data


STREAMS = {"wav": WavStream, "pcm": PcmStream, "flac": FlacStream}


def encode(waveform: torch.Tensor, rate: int, format: str) -> bytes:
    """A whole waveform [N] as file ("wav", "flac") or samples ("pcm"); its length is in the header."""
    samples = to_pcm(waveform)
    if format == "pcm":
        return samples.tobytes()
    if format == "wav":
        return wav_header(rate, samples.nbytes) + samples.tobytes()
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


__all__ = ["FORMATS", "STREAMS", "encode", "to_pcm"]
