"""The world of Ming-Tiny: deterministic, split cleanly, and right about its own pictures."""

import itertools
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from training.tiny import espeak, speech
from training.tiny.drawing import CENTRE, compress, render, render_clip, sample_course
from training.tiny.espeak import word_starts
from training.tiny.questions import (
    Fact,
    describe_scene,
    has,
    pair_facts,
    sample_clip_fact,
    sample_fact,
    sample_yes_no,
    say,
    scene_facts,
    unique_by,
    word,
)
from training.tiny.scenes import (
    COLOURS,
    MAX_SIDE,
    MIN_SIDE,
    NUMBERS,
    SPLITS,
    Clip,
    Scene,
    Shape,
    sample_canvas,
    sample_clip,
    sample_scene,
    shapes_of_split,
    split_of,
)
from training.tiny.sentences import (
    draw_command,
    read_command,
    sample_edit,
    sample_sentence,
    sample_spoken_question,
    sample_text,
    sample_text_question,
    text_facts,
)
from training.tiny.speech import SAMPLE_RATE, LiveSpeaker, SpeechPool, Utterance, Voice, augment, speak
from training.tiny.tokenizer import NUM_BPE_TOKENS, SPECIAL_TOKENS, WORDS, train_tokenizer, write_tokenizer
from training.tiny.world import ROWS, sample_chat

ROOT = Path(__file__).parents[1]


class ToneSpeaker:
    """Any sentence as a tone: for tests that are not about speech, quick and without espeak-ng."""

    split = "train"

    def sentence(self, rng: np.random.Generator) -> Utterance:
        return self._say(sample_sentence(rng, "train"))

    def question(self, rng: np.random.Generator, texts: list[str]) -> Utterance:
        return self._say(texts[int(rng.integers(len(texts)))])

    def command(self, rng: np.random.Generator) -> Utterance:
        return self._say(say(draw_command(sample_scene(rng, "train", 1), rng)))

    def _say(self, text: str) -> Utterance:
        time = np.arange(len(text) * 500, dtype=np.float32) / SAMPLE_RATE
        return Utterance(0.5 * np.sin(880 * np.pi * time).astype(np.float32), text, Voice("tone"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(scope="module")
def tokenizer():
    return PreTrainedTokenizerFast.from_pretrained(ROOT)


def colour_at(image: Image.Image, x: float, y: float) -> str:
    """The colour word nearest to the median of a few pixels around (x, y)."""
    pixels = np.asarray(image, dtype=np.float32)[round(y) - 1 : round(y) + 2, round(x) - 1 : round(x) + 2]
    median = np.median(pixels.reshape(-1, 3), axis=0)
    return min(COLOURS, key=lambda name: np.abs(median - COLOURS[name]).sum())


def mask_of(image: Image.Image, background: str) -> np.ndarray:
    """Pixels [H, W] far from the background colour."""
    return np.abs(np.asarray(image, dtype=np.float32) - COLOURS[background]).max(-1) > 100


def flatten(content) -> list:
    """Messages as plain data that can be compared."""
    if isinstance(content, dict):
        return [(key, flatten(value)) for key, value in content.items()]
    if isinstance(content, list | tuple):
        return [flatten(item) for item in content]
    return content.tobytes() if isinstance(content, Image.Image | np.ndarray) else content


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("dense", [False, True])
def test_every_row_gives_valid_messages_that_the_seed_determines(row, dense):
    for seed in range(8):
        first, second = (
            sample_chat(row, np.random.default_rng(seed), "train", ToneSpeaker(), dense, max_side=96) for _ in range(2)
        )
        assert flatten(first.messages) == flatten(second.messages)
        assert first.row == row
        assert [m["role"] for m in first.messages] == ["user", "assistant"] * (len(first.messages) // 2)
        assert all(message["content"] for message in first.messages)
        for message in first.messages:
            for item in message["content"]:
                check_item(item)
        assert first.answer == first.answer.lower()


def check_item(item: dict) -> None:
    value = item[item["type"]]
    if item["type"] == "text":
        assert value and "{" not in value
    elif item["type"] == "audio":
        waveform, rate = value
        assert (waveform.dtype, waveform.ndim, rate) == (np.float32, 1, SAMPLE_RATE)
        assert np.abs(waveform).max() <= 1.0
    else:
        images = value if item["type"] == "video" else [value]
        assert all(image.mode == "RGB" and min(image.size) >= MIN_SIDE for image in images)
        assert item["type"] == "image" or 4 <= len(images) <= 16


def test_dense_samples_ask_several_questions(rng):
    for row in ("image_qa", "image_count_describe", "two_images", "video_qa", "text_only"):
        assert np.mean([len(sample_chat(row, rng, "train", None, True, 64).messages) / 2 for _ in range(20)]) >= 5


def test_unknown_row_split_or_missing_speaker_is_an_error(rng):
    with pytest.raises(ValueError, match="row must be one of"):
        sample_chat("images", rng, "train")
    with pytest.raises(ValueError, match="split must be one of"):
        sample_chat("image_qa", rng, "dev")
    with pytest.raises(ValueError, match="needs a speaker"):
        sample_chat("asr_sanm", rng, "train")
    with pytest.raises(ValueError, match="use one split"):
        sample_chat("asr_sanm", rng, "test", ToneSpeaker())


def test_splits_are_disjoint_and_both_cover_every_word(rng):
    train, test = (set(shapes_of_split(split)) for split in SPLITS)
    assert len(train) + len(test) == 320
    assert not train & test
    assert 0.05 < len(test) / 320 < 0.15
    for _ in range(300):
        assert set(sample_scene(rng, "train").shapes) <= train
        assert set(sample_scene(rng, "test").shapes) & test
        assert sample_clip(rng, "test").split == "test"
        assert sample_clip(rng, "train").split == "train"
    assert not set(speech.voice_names("train")) & set(speech.voice_names("test"))
    for split in SPLITS:
        assert split_of(sample_sentence(rng, split)) == split_of(sample_spoken_question(rng, split)) == split


def test_text_prompts_of_the_splits_are_disjoint_and_every_fact_is_taught(rng):
    train, test = ({sample_text_question(rng, split).text for _ in range(800)} for split in SPLITS)
    assert not {text for text in train & test if ":" not in text}
    for rows in text_facts().values():
        for wordings, slots, _ in rows:
            texts = [wording.format(**slots) for wording in wordings]
            assert any(split_of(f"text: {text[0].upper()}{text[1:]}") == "train" for text in texts)


def test_pictures_show_the_named_colours_at_the_named_positions(rng):
    for _ in range(60):
        scene = sample_scene(rng, str(rng.choice(SPLITS)))
        width, height = sample_canvas(rng)
        assert MIN_SIDE <= min(width, height) <= max(width, height) <= MAX_SIDE
        assert max(width, height) / min(width, height) <= 2.0
        image = render(scene, width, height, rng)
        assert image.size == (width, height)
        assert colour_at(image, width - 3, 3) == scene.background
        shown = {shape.position: shape.colour for shape in scene.shapes}
        for position, (x, y) in CENTRE.items():
            assert colour_at(image, x * width, y * height) == shown.get(position, scene.background)


def test_shapes_stay_inside_and_apart_and_sizes_are_clearly_apart(rng):
    row = [Shape("square", "red", "large", position) for position in ("left", "right", "center")]
    column = [Shape("circle", "red", "large", position) for position in ("top", "bottom", "center")]
    for shapes in (row, column):
        for _ in range(30):
            mask = mask_of(render(Scene("white", tuple(shapes)), 64, 64, rng, clean=True), "white")
            assert not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())
            profile = mask.any(axis=0 if shapes is row else 1)
            assert np.diff(profile.astype(int)).tolist().count(1) == 3
    area = {}
    for size in ("small", "large"):
        scene = Scene("white", (Shape("star", "blue", size, "center"),))
        area[size] = [mask_of(render(scene, 96, 96, rng, clean=True), "white").sum() for _ in range(40)]
    assert max(area["small"]) * 1.4 < min(area["large"])


def test_shapes_of_one_kind_are_drawn_as_that_kind(rng):
    fill_of = {}  # share of the bounding box that is filled tells the four kinds apart
    for kind in ("circle", "square", "triangle", "star"):
        mask = mask_of(render(Scene("white", (Shape(kind, "black", "large", "center"),)), 200, 200, rng), "white")
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        fill_of[kind] = mask.sum() / ((rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1))
    assert fill_of["square"] > 0.95 > fill_of["circle"] > 0.7 > fill_of["triangle"] > 0.45 > fill_of["star"]


def test_an_edit_leaves_the_rest_of_the_picture_unchanged(rng):
    for seed in range(20):
        scene = sample_scene(rng, "train", 1)
        command, edited = sample_edit(scene, rng)
        assert command.endswith(".")
        assert edited != scene
        before, after = (
            np.asarray(render(s, 96, 96, np.random.default_rng(seed), clean=True)) for s in (scene, edited)
        )
        if "background" not in command:
            x, y = 92, 3
            assert (before[y, x] == after[y, x]).all()
        if edited.shapes == scene.shapes:
            x, y = (round(96 * c) for c in CENTRE[scene.shapes[0].position])
            assert (before[y, x] == after[y, x]).all()


def test_clips_move_the_way_they_say(rng):
    for motion, axis, sign in (("left", 1, -1), ("right", 1, 1), ("up", 0, -1), ("down", 0, 1), ("still", 0, 0)):
        clip = Clip("star", "red", "small", motion, "white", 6)
        frames = render_clip(sample_course(clip, rng), 96, 72, rng)
        centres = [np.argwhere(mask_of(frame, "white")).mean(0) for frame in frames]
        moved = centres[-1] - centres[0]
        assert len(frames) == 6
        assert np.abs(moved[1 - axis]) < 2
        assert np.sign(np.round(moved[axis] / 4)) == sign


def test_a_clip_out_of_a_file_keeps_its_frames_and_loses_colour_detail(rng):
    course = sample_course(Clip("circle", "red", "small", "left", "white", 7), rng)
    frames = render_clip(course, 97, 64, rng, clean=True)
    filed = compress(frames, 20)
    assert [frame.size for frame in filed] == [(96, 64)] * 7
    drawn, read = (np.float32([np.asarray(frame)[:, :96] for frame in some]) for some in (frames, filed))
    assert 0.2 < np.abs(read - drawn).mean() < 12


def test_wishes_for_pictures_follow_one_another():
    outlines = 0
    for seed in range(40):
        sample = sample_chat("editing", np.random.default_rng(seed), "train", dense=True, max_side=96)
        answers = [m["content"][0]["text"] for m in sample.messages if m["role"] == "assistant"]
        scenes = [sample.labels[0], *(picture.scene for picture in sample.pictures)]
        assert answers == [describe_scene(scene) for scene in scenes[1:]]
        styles = [picture.outline for picture in sample.pictures]
        assert styles == sorted(styles)  # an outline stays one
        outlines += styles[-1]
        for before, after in itertools.pairwise(zip(scenes, [False, *styles], strict=True)):
            assert before != after
    assert 5 < outlines < 35


def test_spoken_commands_are_read_back(rng):
    for _ in range(50):
        scene = sample_scene(rng, "train", 1)
        assert read_command(say(draw_command(scene, rng))) == scene
    assert read_command(say(draw_command(sample_scene(rng, "train", 2), rng))) is None
    assert read_command("draw a small red circle") is None


def test_spoken_chats_ask_several_times_about_one_picture(rng):
    sample = sample_chat("spoken_question", rng, "train", ToneSpeaker(), dense=True, max_side=96)
    kinds = [item["type"] for item in sample.media]
    assert kinds.count("image") == 1 and kinds.count("audio") == 4
    spoken = [label for item, label in zip(sample.media, sample.labels, strict=True) if item["type"] == "audio"]
    transcripts = [m["content"][0]["text"] for m in sample.messages if m["role"] == "assistant"]
    assert len(spoken) == 4 and len(transcripts) >= 4


def test_answers_about_a_known_scene():
    scene = Scene("white", (Shape("circle", "red", "small", "left"), Shape("star", "blue", "large", "center")))
    assert (
        describe_scene(scene)
        == "a small red circle on the left and a large blue star in the center, on a white background"
    )
    facts = {(fact.kind, *fact.slots.values()): fact.answer for fs in scene_facts(scene).values() for fact in fs}
    assert facts["colour_of_shape", "circle"] == "red"
    assert facts["shape_at", "in the center"] == "star"
    assert facts["shape_of_colour", "blue", "star"] == "star"
    assert facts["position_of_shape", "star"] == "center"
    assert facts["size_of_shape", "circle"] == "small"
    assert facts[("count",)] == "two"
    assert facts[("background",)] == "white"
    twins = Scene("white", (Shape("circle", "red", "small", "left"), Shape("circle", "blue", "large", "right")))
    assert unique_by(twins.shapes, "kind") == []
    assert "colour_of_shape" not in scene_facts(twins)


def test_yes_and_no_are_balanced_and_right(rng):
    answers: Counter[str] = Counter()
    for _ in range(600):
        scene = sample_scene(rng, "train")
        fact = sample_yes_no(scene, rng)
        assert (fact.answer == "yes") == has(scene, fact.kind, fact.slots)
        answers[fact.answer] += 1
        clip = sample_clip_fact(sample_clip(rng, "train"), rng)
        if clip.kind in ("moves", "moves_way"):
            answers[f"clip {clip.answer}"] += 1
        for pair in pair_facts(scene, sample_scene(rng, "train"), rng):
            if pair.kind == "both_shape":
                answers[f"pair {pair.answer}"] += 1
    for prefix in ("", "clip ", "pair "):
        yes, no = answers[f"{prefix}yes"], answers[f"{prefix}no"]
        assert 0.38 < yes / (yes + no) < 0.62, (prefix, answers)


def test_both_spellings_and_the_article_occur(rng):
    texts = {word(Fact("has_colour", "yes", {"colour": "orange"}), rng).text for _ in range(40)}
    assert "Is there an orange shape?" in texts
    texts = {word(Fact("it_colour", "red"), rng).text for _ in range(60)}
    assert {"What colour is it?", "What color is it?"} <= texts
    scene = sample_scene(rng, "train")
    assert sample_fact(scene, rng, ("count",)).answer == NUMBERS[len(scene.shapes)]


def test_tokenizer_has_the_released_special_tokens_and_layout(tokenizer):
    assert len(tokenizer) == NUM_BPE_TOKENS + 288 == 1024
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(NUM_BPE_TOKENS, 1024))
    assert tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.bos_token == "<|startoftext|>"
    assert tokenizer.padding_side == "left"
    released = {"<|startoftext|>": 126080, "<role>": 126340, "<imagePatch>": 126346, "<tts>": 126367}
    for token, index in released.items():
        assert tokenizer.convert_tokens_to_ids(token) == index - 126080 + NUM_BPE_TOKENS


def test_words_are_single_tokens_with_and_without_a_space(tokenizer):
    for name in WORDS:
        assert len(tokenizer.tokenize(name)) == len(tokenizer.tokenize(f" {name}")) == 1, name
    turn = tokenizer.tokenize("<role>ASSISTANT</role>red<role>HUMAN</role>")
    assert turn == ["<role>", "ASSISTANT", "</role>", "red", "<role>", "HUMAN", "</role>"]


def test_tokenizer_round_trips_any_text(tokenizer, rng):
    texts = [text for _ in range(30) for text in sample_text(rng)] + ["Ünïcode \n\t emoji 🦊, 龍 and  spaces  "]
    for text in texts:
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_tokenizer_is_deterministic_and_the_one_in_the_repository(tmp_path):
    write_tokenizer(train_tokenizer(), tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / name).read_text(encoding="utf-8") == (ROOT / name).read_text(encoding="utf-8")
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab_size() == 1024


def test_missing_espeak_is_one_clear_error(monkeypatch, tmp_path):
    monkeypatch.setattr(espeak, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="pip install espeakng-loader"):
        speak("red", Voice("en+m1"))
    with pytest.raises(RuntimeError, match="pip install espeakng-loader"):
        SpeechPool.build(tmp_path, 1, "train")
    with pytest.raises(FileNotFoundError, match=r"training\.tiny\.speech"):
        SpeechPool(tmp_path)


def test_speech_is_spoken(rng):
    voice = Voice("en-us+f2", 160, 50)
    waveform = speak("a small red circle on the left", voice)
    starts = word_starts("a small red circle on the left", *vars(voice).values())
    assert [character for character, _ in starts] == [0, 2, 8, 12, 19, 26]  # "on the" is said as one
    assert all(0 <= one < two < len(waveform) / SAMPLE_RATE for (_, one), (_, two) in itertools.pairwise(starts))
    assert waveform.dtype == np.float32
    assert 1.0 < len(waveform) / SAMPLE_RATE < 3.0
    time.sleep(1.1)  # the engine would seed its noise with the clock, in seconds
    assert (waveform == speak("a small red circle on the left", voice)).all()
    assert len(speak("red", Voice("en+m1"))) < len(waveform)
    assert not np.array_equal(speak("red", Voice("en+m1")), speak("red", Voice("en+f1")))
    utterance = LiveSpeaker("test").sentence(rng)
    assert split_of(utterance.text) == split_of(utterance.voice.name) == "test"


def test_noise_has_the_asked_ratio(rng):
    waveform = ToneSpeaker()._say("a small red circle").waveform
    for snr in (0.0, 15.0):
        noise = speech.add_noise(waveform, snr, rng) - waveform
        measured = 10 * np.log10(np.mean(waveform**2) / np.mean(noise**2))
        assert measured == pytest.approx(snr, abs=0.1)
    assert np.abs(augment(waveform, rng, 15.0)).max() <= 1.0


def test_pool_is_resumable_and_reads_back(monkeypatch, tmp_path, rng):
    monkeypatch.setattr(speech, "speak", lambda text, voice: np.full(len(text) * 100, 0.25, np.float32))
    speech._claim(tmp_path, {"split": "test", "seed": 3})
    for number in range(2):
        speech._build_shard(tmp_path / f"shard_{number:05d}.json", number, 20, "test", seed=3)
    pool = SpeechPool(tmp_path)
    assert (len(pool), pool.split) == (40, "test")
    assert pool[39].waveform.shape == (len(pool[39].text) * 100,)
    assert pool[0].waveform == pytest.approx(0.25, abs=1e-3)
    durations = [pool.records[index]["length"] for index in pool.alike(rng, 4, pool.sentences)]
    assert max(durations) - min(durations) < max(pool.records[i]["length"] for i in pool.sentences) / 2
    question = next(iter(pool.questions))
    assert pool.question(rng, ["nothing of the kind"]) is None
    assert pool.question(rng, ["nothing of the kind", question]).text == question
    (tmp_path / "shard_00001.json").unlink()
    assert len(SpeechPool(tmp_path)) == 20
    speech._claim(tmp_path, {"split": "test", "seed": 3})
    with pytest.raises(ValueError, match="was made with"):
        speech._claim(tmp_path, {"split": "train", "seed": 3})
