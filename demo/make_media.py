"""Make the image, recordings and video of the demo from the test split of Ming-Tiny's world (needs espeak-ng).

The files are part of the repository; this command makes other ones: `python -m demo.make_media --seed 22`.
"""

import argparse
import json
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image, ImageFilter

from ming.cli.arguments import seed
from training.tiny.drawing import render, render_clip, sample_course
from training.tiny.questions import Fact, describe_clip, describe_scene
from training.tiny.scenes import Clip, Scene, sample_clip, sample_scene
from training.tiny.sentences import spoken_forms
from training.tiny.speech import SAMPLE_RATE, LiveSpeaker, augment

HERE = Path(__file__).parent
FRAMES_PER_SECOND = 8


def write_picture(scene: Scene, rng: np.random.Generator, path: Path) -> None:
    """Write an image with the flaws of a camera: slight blur, sensor noise, JPEG."""
    image = render(scene, 220, 180, rng).filter(ImageFilter.GaussianBlur(0.6))
    noisy = np.asarray(image, dtype=np.float32) + rng.normal(0.0, 4.0, (180, 220, 1))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=88)


def write_clip(clip: Clip, rng: np.random.Generator, path: Path) -> None:
    """Write a video as H.264."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        stream.width, stream.height, stream.pix_fmt = 160, 128, "yuv420p"
        for image in render_clip(sample_course(clip, rng), 160, 128, rng):
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(prog="python -m demo.make_media", description=__doc__)
    parser.add_argument("--seed", type=seed, default=22)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    scene, clip = sample_scene(rng, "test", num_shapes=2), sample_clip(rng, "test", num_frames=12)
    speaker = LiveSpeaker("test")
    utterance = speaker.sentence(rng)
    write_picture(scene, rng, HERE / "picture.jpg")
    write_clip(clip, rng, HERE / "clip.mp4")
    soundfile.write(HERE / "recording.wav", augment(utterance.waveform, rng), SAMPLE_RATE)
    question = speaker.question(rng, spoken_forms(Fact("describe", describe_scene(scene))))
    if question is None:
        raise RuntimeError("no spoken form of the question belongs to the test split; add wordings")
    soundfile.write(HERE / "question.wav", augment(question.waveform, rng), SAMPLE_RATE)
    request = speaker.command(rng)
    soundfile.write(HERE / "request.wav", augment(request.waveform, rng), SAMPLE_RATE)
    expected = {
        "picture": describe_scene(scene),
        "recording": utterance.text,
        "question": question.text,
        "clip": describe_clip(clip),
        "request": request.text,
    }
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
