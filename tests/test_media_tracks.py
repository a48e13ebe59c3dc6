"""Which track of a file is read, when it begins, in which proportions, and on what: as players show it."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from processor_helpers import released_processor
from test_media_files import VideoDecoder

import ming.media
import ming.video
from ming.media import load_audio, load_video_audio
from ming.video import VideoOptions, load_video

PITCHES = (400, 1000, 2000)  # Hz
RATE = 16000
ENDINGS = ["mp4", "mkv"]


def disposition(*names: str) -> int:
    """PyAV 15 takes the number alone."""
    return sum(getattr(av.stream.Disposition, name).value for name in names)


def sound(container, stream, seconds=2.0, start=0.0, pitch=400, skip=(0.0, 0.0)):
    """Encode a tone that begins at `start`; nothing between the two seconds of `skip`."""
    rate, packets = stream.rate, []
    samples = (0.5 * np.sin(2 * np.pi * pitch * np.arange(int(rate * seconds)) / rate)).astype(np.float32)
    for at in range(0, len(samples), 1024):
        if skip[0] <= at / rate < skip[1]:
            continue
        form = stream.codec_context.format.name
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None, at : at + 1024]), "flt", "mono")
        frame.rate, frame.pts, frame.time_base = rate, at + round(start * rate), Fraction(1, rate)
        for part in av.AudioResampler(form, "mono", rate).resample(frame):
            packets += stream.encode(part)
    container.mux([*packets, *stream.encode()])


def picture(container, stream, grey=128, frames=8, start=0.0):
    """Encode frames of one grey."""
    packets = []
    for index in range(frames):
        pixels = np.full((stream.height, stream.width, 3), grey, np.uint8)
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = index + round(start * 4), Fraction(1, 4)
        packets += stream.encode(frame)
    container.mux([*packets, *stream.encode()])


def video_stream(container, codec="libx264", size=(64, 48), pixels="yuv420p"):
    stream = container.add_stream(codec, rate=4)
    stream.width, stream.height, stream.pix_fmt = *size, pixels
    stream.codec_context.time_base = Fraction(1, 4)
    return stream


def write_audio_tracks(path, marks):
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("aac", rate=RATE, layout="mono") for _ in marks]
        for stream, mark in zip(streams, marks, strict=True):
            stream.disposition = mark
        for stream, pitch in zip(streams, PITCHES, strict=False):
            sound(container, stream, pitch=pitch)
    return path


def write_clip(path, video_start=0.0, sound_start=0.0, **options):
    """Two seconds of frames and of sound, each with its start."""
    with av.open(str(path), "w") as container:
        video = video_stream(container)
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        picture(container, video, start=video_start)
        sound(container, stream, start=sound_start, **options)
    return path


def pitch_of(waveform: torch.Tensor, rate: int) -> float:
    middle = waveform[0, len(waveform[0]) // 4 :][: rate // 2]
    return float((middle[1:] * middle[:-1] < 0).sum())  # crossings of zero in half a second


# Which track


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("marks", "played"),
    [
        ([(), ("default",)], 1),
        ([("default",), ()], 0),
        ([(), ()], 0),
        ([("default",), ("default",)], 0),
        ([(), (), ("default",)], 2),
    ],
    ids=str,
)
def test_the_default_audio_track_is_heard(tmp_path, ending, marks, played):
    path = write_audio_tracks(tmp_path / f"a.{ending}", [disposition(*each) for each in marks])
    for load in (load_audio, load_video_audio):
        assert pitch_of(*load(path)) == pytest.approx(PITCHES[played], rel=0.05)


def test_a_description_for_the_blind_gives_way(tmp_path):
    marks = [disposition("visual_impaired"), disposition()]
    assert pitch_of(*load_audio(write_audio_tracks(tmp_path / "a.mkv", marks))) == pytest.approx(PITCHES[1], rel=0.05)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("default", [None, 0, 1])
def test_the_default_video_track_is_seen(tmp_path, ending, default):
    with av.open(str(tmp_path / f"a.{ending}"), "w") as container:
        streams = [video_stream(container), video_stream(container, size=(96, 80))]
        for index, stream in enumerate(streams):
            stream.disposition = disposition("default") if index == default else 0
        for stream in streams:
            picture(container, stream)
    frames = load_video(tmp_path / f"a.{ending}", VideoOptions(resize=False))
    assert frames.shape[-2:] == ((80, 96) if default == 1 else (48, 64))


# When it begins


@pytest.fixture(scope="module", params=ENDINGS)
def late_sound(request, tmp_path_factory):
    """A clip whose sound begins 5 s after its first frame; neither begins with the clock of the file."""
    return write_clip(tmp_path_factory.mktemp("late") / f"a.{request.param}", video_start=1.0, sound_start=6.0)


def first_sound(waveform: torch.Tensor, rate: int) -> float:
    return int((waveform[0].abs() > 0.1).nonzero()[0]) / rate


@pytest.mark.parametrize(
    ("part", "seconds", "heard"), [((4.0, 6.0), 2.0, 1.0), ((5.5, 6.5), 1.0, 0.0), ((0.0, 7.0), 7.0, 5.0)]
)
def test_a_part_has_the_sound_that_is_heard_with_its_frames(late_sound, part, seconds, heard):
    waveform, rate = load_video_audio(late_sound, *part)
    assert waveform.shape[1] / rate == pytest.approx(seconds, abs=0.07)  # AAC pads its end
    assert first_sound(waveform, rate) == pytest.approx(heard, abs=0.07)
    assert not waveform[0, : int(rate * (heard - 0.07))].any() or not heard


def test_the_whole_track_is_read_as_it_is(late_sound):
    waveform, rate = load_video_audio(late_sound)
    assert waveform.shape[1] / rate == pytest.approx(2.0, abs=0.15) and first_sound(waveform, rate) < 0.1
    assert load_video_audio(late_sound, None, 6.0)[0].shape[1] / rate == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("part", "where"),
    [
        ((0, 1.5), "0 to 1.5 s: its audio track begins at (4.9|5.0)"),
        ((None, 2), "0 to 2 s: its audio track begins"),
        ((60, None), "60 to inf s: its audio track ends at (6.9|7)"),
    ],
)
def test_a_part_without_sound_says_where_it_is(late_sound, part, where):
    with pytest.raises(ValueError, match=f"no samples from {where}"):
        load_video_audio(late_sound, *part)


def test_sound_before_the_first_frame(tmp_path):
    path = write_clip(tmp_path / "a.mkv", video_start=1.0, sound_start=0.0)
    assert load_video_audio(path)[0].shape[1] / RATE == pytest.approx(2.0, abs=0.15)
    assert load_video_audio(path, 0.0)[0].shape[1] / RATE == pytest.approx(1.0, abs=0.15)


def test_an_interrupted_recording_keeps_its_times(tmp_path):
    path = write_clip(tmp_path / "a.mkv", seconds=6.0, skip=(1.0, 4.0))
    waveform, rate = load_video_audio(path, 0.5, 5.0)
    assert waveform.shape[1] == 4.5 * rate
    loud = waveform[0].unfold(0, rate // 2, rate // 2)[:, rate // 4 :].abs().amax(1) > 0.1  # AAC blurs the edges
    assert loud.tolist() == [True, *[False] * 6, True, True]
    assert load_video_audio(path)[0].shape[1] / rate == pytest.approx(3.0, abs=0.2)  # as it is


def test_a_silence_that_only_a_file_claims_is_not_made(tmp_path):
    path = write_clip(tmp_path / "a.mkv", sound_start=100_000.0)
    with pytest.raises(ValueError, match="s or more of audio exceed the limit of 1800 s"):
        load_video_audio(path, 0.0)
    assert load_video_audio(path)[0].shape[1] / RATE == pytest.approx(2.0, abs=0.15)


def test_late_recordings_are_not_called_cut_off(tmp_path, caplog):
    with av.open(str(tmp_path / "a.mka"), "w", format="matroska") as container:
        sound(container, container.add_stream("aac", rate=RATE, layout="mono"), start=5.0)
    assert load_audio(tmp_path / "a.mka")[0].shape[1] / RATE == pytest.approx(2.0, abs=0.15)
    assert not caplog.records


def test_options_of_a_call_cut_frames_and_sound_alike(tmp_path):
    chat = [{"role": "user", "content": [{"type": "video", "video": str(write_clip(tmp_path / "a.mp4"))}]}]
    processor, part = released_processor(), {"video_start": 0.5, "video_end": 1.5}
    _, (video,), ((waveform, rate),) = processor.process_vision_info(
        chat, load_audio_from_video=True, videos_kwargs=part
    )
    assert len(video) == 4 and waveform.shape[1] == rate


# In which proportions


def write_anamorphic(path, aspect, size=(64, 48), codec="libx264") -> bytes:
    """A clip whose pixels are shown `aspect` times as wide as high: white, with a black left half."""
    with av.open(str(path), "w") as container:
        stream = video_stream(container, codec, size)
        stream.codec_context.sample_aspect_ratio = aspect
        pixels = np.full((size[1], size[0], 3), 255, np.uint8)
        pixels[:, : size[0] // 2] = 0
        packets = []
        for index in range(4):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 4)
            packets += stream.encode(frame)
        container.mux([*packets, *stream.encode()])
    return path.read_bytes()


@pytest.mark.parametrize("ending", [*ENDINGS, "avi"])
@pytest.mark.parametrize(
    ("aspect", "width"), [(Fraction(2), 128), (Fraction(1, 2), 32), (Fraction(64, 45), 91), (Fraction(1), 64)], ids=str
)
def test_anamorphic_videos_have_the_proportions_that_players_show(tmp_path, ending, aspect, width, caplog):
    codec = "mpeg4" if ending == "avi" else "libx264"
    data = write_anamorphic(tmp_path / f"a.{ending}", aspect, codec=codec)
    frame = load_video(data, VideoOptions(resize=False))[0, 0].float()
    assert tuple(frame.shape) == (48, width) and not caplog.records
    assert frame[:, : width // 2 - 3].max() < 30 and frame[:, width // 2 + 3 :].min() > 225
    height, width = load_video(data).shape[-2:]
    assert width / height == pytest.approx(64 * aspect / 48, rel=0.1)


def test_a_turned_video_is_stretched_as_it_is_stored(tmp_path):
    data = bytearray(write_anamorphic(tmp_path / "a.mp4", Fraction(2)))
    at = data.index(b"tkhd") + 44
    data[at : at + 20] = np.array([0, 1 << 16, 0, -(1 << 16), 0], ">i4").tobytes()  # by a right angle
    assert load_video(bytes(data), VideoOptions(resize=False)).shape[-2:] == (128, 48)


@pytest.mark.parametrize(("width", "height"), [(10_000, 1), (1, 10_000), (2**31 - 1, 1)])
def test_absurd_proportions_are_ignored_with_a_warning(tmp_path, caplog, width, height):
    data = bytearray(write_anamorphic(tmp_path / "a.mp4", Fraction(2)))
    at = data.index(b"pasp") + 4
    data[at : at + 8] = np.array([width, height], ">u4").tobytes()
    assert load_video(bytes(data), VideoOptions(resize=False)).shape[-2:] == (48, 64)
    assert f"its pixels are shown {width}:{height}" in caplog.text


@pytest.mark.parametrize("pair", [(0, 0), (0, 1), (1, 0)])
def test_undefined_proportions_are_ignored(tmp_path, caplog, pair):
    data = bytearray(write_anamorphic(tmp_path / "a.mp4", Fraction(2), codec="mpeg4"))
    at = data.index(b"pasp") + 4
    data[at : at + 8] = np.array(pair, ">u4").tobytes()
    assert load_video(bytes(data), VideoOptions(resize=False)).shape[-1] in (64, 128)  # the track's own, if it has any
    assert not caplog.records


def test_stretched_frames_keep_to_the_limit(tmp_path, monkeypatch):
    data = write_anamorphic(tmp_path / "a.mp4", Fraction(2))
    monkeypatch.setattr(ming.media, "MAX_FRAME_PIXELS", 5000)
    with pytest.raises(ValueError, match="128 x 48 pixels are more than 5,000"):
        load_video(data)


def test_decoders_of_torchcodec_are_stretched(monkeypatch):
    monkeypatch.setattr(VideoDecoder.metadata, "pixel_aspect_ratio", Fraction(2), raising=False)
    assert load_video(VideoDecoder(), VideoOptions(resize=False)).shape[-2:] == (56, 168)


# On what


def write_alpha(path, codec) -> bytes:
    """Half transparent, half opaque; the hidden colour is black, and what is seen is red."""
    pixels = np.zeros((48, 64, 4), np.uint8)
    pixels[:, 32:] = (255, 0, 0, 255)
    with av.open(str(path), "w", format="webm") as container:
        stream = video_stream(container, codec, pixels="yuva420p")
        stream.options = {"auto-alt-ref": "0"}  # libvpx takes no transparency with it
        stream.metadata["alpha_mode"] = "1"
        packets = []
        for index in range(4):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba")
            frame.pts, frame.time_base = index, Fraction(1, 4)
            packets += stream.encode(frame.reformat(format="yuva420p"))
        container.mux([*packets, *stream.encode()])
    return path.read_bytes()


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_transparent_webm_is_seen_on_white(tmp_path, caplog, monkeypatch, codec):
    data = write_alpha(tmp_path / "a.webm", codec)
    frames = load_video(data, VideoOptions(resize=False))
    assert len(frames) == 4 and frames[..., :28].min() > 245 and not caplog.records
    assert frames[:, 0, :, 36:].min() > 230 and frames[:, 1:, :, 36:].max() < 25
    monkeypatch.setattr(ming.video, "ALPHA_DECODERS", {"vp8": "no_such", "vp9": "no_such"})
    assert load_video(data, VideoOptions(resize=False))[..., :28].max() < 25
    assert caplog.text.count("has transparency, which needs the decoder no_such") == 1
