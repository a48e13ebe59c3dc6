"""Images and waveforms as files."""

import io
import wave

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from ming.encoding import encode_audio, encode_image, save_audio, to_pcm16

WAVEFORM = torch.tensor([0.0, 0.5, -0.5, 1.0, -1.0, 1.5, -1.5])
PCM = [0, 16384, -16384, 32767, -32767, 32767, -32767]


def test_samples_are_rounded_and_clipped():
    assert to_pcm16(WAVEFORM).tolist() == PCM and to_pcm16(WAVEFORM).dtype == np.dtype("<i2")


def test_wav_is_what_pythons_own_writer_makes():
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, 22_050, 0, "NONE", None))
        writer.writeframes(np.array(PCM, "<i2").tobytes())
    assert encode_audio(WAVEFORM, 22_050) == file.getvalue()


def test_flac_holds_the_same_samples():
    samples, rate = soundfile.read(io.BytesIO(encode_audio(WAVEFORM, 16_000, "flac")), dtype="int16")
    assert (samples.tolist(), rate) == (PCM, 16_000)


@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp"])
def test_images(file_format):
    image = Image.open(io.BytesIO(encode_image(Image.new("RGB", (5, 3), "red"), file_format)))
    assert (image.format.lower(), image.size) == (file_format, (5, 3))


def test_save_audio_refuses_endings_that_name_no_audio_format(tmp_path):
    with pytest.raises(ValueError, match="cannot write .txt files; use .wav"):
        save_audio(tmp_path / "x.txt", WAVEFORM, 16_000)
    save_audio(tmp_path / "x.wav", WAVEFORM, 16_000)
    assert soundfile.info(tmp_path / "x.wav").frames == len(WAVEFORM)


@pytest.mark.parametrize("ending", ["wav", "flac", "mp3", "ogg", "aiff"])
def test_a_reply_without_sound_is_a_file_that_players_open(tmp_path, ending):
    save_audio(tmp_path / f"x.{ending}", torch.zeros(0), 22_050)
    samples, rate = soundfile.read(tmp_path / f"x.{ending}")
    assert len(samples) <= 1 and not samples.any() and rate == 22_050
    assert soundfile.info(io.BytesIO(encode_audio(torch.zeros(0), 16_000, "flac"))).samplerate == 16_000
