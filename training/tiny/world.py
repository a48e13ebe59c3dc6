"""Ming-Tiny's world as chats: pictures, clips, speech and text with questions and their exact answers.

`sample_chat` makes one chat of one of `ROWS`, the abilities that the checkpoint is measured by. All randomness comes
from the generator that is passed in; there is no global state, and the same seed gives the same sample.

Split: see `scenes` for pictures and clips, `sentences` for text and spoken words, `speech` for voices.
Grammar of the answers: see `questions`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from .drawing import Course, compress, render, render_clip, sample_course
from .questions import (
    COUNT_KINDS,
    FOLLOW_UPS,
    QA_KINDS,
    Fact,
    Question,
    clip_facts,
    describe_clip,
    describe_scene,
    pair_facts,
    pronoun_facts,
    sample_clip_fact,
    sample_count_by,
    sample_fact,
    sample_yes_no,
    scene_facts,
    unique_by,
    word,
)
from .scenes import COLOURS, MAX_SIDE, Clip, Scene, check_split, choose, sample_canvas, sample_clip, sample_scene
from .sentences import OUTLINE, draw_command, read_command, sample_edit, sample_text_question, spoken_forms
from .speech import SAMPLE_RATE, Speaker, Utterance, augment

NOISY_SNR = 15.0  # dB
MAX_CLIP_SIDE = 160  # pixels; a clip has up to 16 frames
FILED_CLIPS = 0.4  # share of training clips that are compressed, which changes the colours of small shapes
RATE_FACTORS = (16, 30)  # of H.264, from almost no loss to visible blocks
NUM_DENSE_TURNS = 5  # questions before the description
ALIKE_SHAPES = 0.35  # share of shapes of a training scene that must resemble the first one
TRANSCRIBE = (
    "Please recognize the language of this speech and transcribe it. Format: oral.",
    "Transcribe this recording.",
    "What is said in the audio?",
    "Write down the words.",
    "What does the speaker say?",
)
ASK_AGAIN = ("What did the speaker ask?", "What was the spoken question?", "Write down the spoken question.")
ANSWER_SPOKEN = ("", "", "Answer the spoken question.", "Listen and answer.")
ANSWER_ABOUT = (
    "Answer the spoken question about the {medium}.",
    "Listen and answer the question about the {medium}.",
    "The speaker asks about the {medium}. Answer.",
)
IN_MEDIUM = ("In the {medium}, {question}", "Look at the {medium}. {Question}", "About the {medium}: {question}")
MEDIA_OF_MIXED = (("image", "audio", "video"),) * 3 + (("image", "audio"), ("image", "video"), ("audio", "video"))

NUM_DENSE_EDITS = 2
NUM_DRAWINGS = 2  # of a chat whose drawings have nothing to do with each other
EDITS = ("change", "change", "change", "outline")
NUM_SPOKEN_TURNS = 4  # of a dense chat: spoken questions about one picture
REPEATED_BEFORE, REPEATED_AFTER = 0.15, 0.1  # share of them that are also transcribed, before or after the answer
DESCRIBED_PAIRS = 0.25  # share of dense pairs with a description: long answers would outweigh the short ones
NUM_WHICH = 3  # samples of the questions about a dense pair

Content = dict[str, Any]


class Picture(NamedTuple):
    """What a requested picture must show: a scene, its shapes filled or in outline."""

    scene: Scene
    outline: bool = False


class Turn(NamedTuple):
    """A question and its answer.

    Args:
        media: items of the question, besides those that open the chat.
        picture: the picture that the question requests.
    """

    question: str
    answer: str
    media: tuple[Content, ...] = ()
    picture: Picture | None = None


@dataclass(frozen=True)
class Sample:
    """A chat of an ability.

    Args:
        messages: alternate {"role": "user", "content": [...]} and {"role": "assistant", "content": [...]} and end with
            an assistant turn. Items of the content: {"type": "image", "image": PIL image}, {"type": "video", "video":
            [PIL image, ...]}, {"type": "audio", "audio": (float32 waveform [N], rate in Hz)}, {"type": "text", "text":
            words}.
        row: the ability, a key of `ROWS`.
        labels: the content of each medium: the `Scene` of an image, the `Course` of a video, the text of a recording.
        pictures: per turn the picture that it requests, if any.
    """

    messages: list[dict[str, Any]]
    row: str
    labels: tuple[Scene | Course | str, ...] = ()
    pictures: tuple[Picture | None, ...] = ()

    @property
    def media(self) -> list[Content]:
        """The images, videos and recordings of the chat."""
        return [item for message in self.messages for item in message["content"] if item["type"] != "text"]

    @property
    def answer(self) -> str:
        """The expected last answer."""
        return self.messages[-1]["content"][0]["text"]


@dataclass(frozen=True)
class Studio:
    """What a row needs to make a sample; arguments as of `sample_chat`."""

    rng: np.random.Generator
    split: str
    speaker: Speaker | None
    dense: bool
    max_side: int

    def picture(self, scene: Scene) -> Content:
        """The rendered scene as a content item."""
        width, height = sample_canvas(self.rng, self.max_side)
        return {"type": "image", "image": render(scene, width, height, self.rng), "label": scene}

    def scene(self, **settings) -> Scene:
        """A scene of the split. In training, shapes often share a colour or a kind, so that counting is needed."""
        return sample_scene(self.rng, self.split, alike=ALIKE_SHAPES if self.dense else 0.0, **settings)

    def video(self, clip: Clip) -> Content:
        """The rendered clip as a content item."""
        width, height = sample_canvas(self.rng, min(self.max_side, MAX_CLIP_SIDE))
        course = sample_course(clip, self.rng)
        frames = render_clip(course, width, height, self.rng)
        if self.dense and self.rng.random() < FILED_CLIPS:
            frames = compress(frames, int(self.rng.integers(*RATE_FACTORS)))
        return {"type": "video", "video": frames, "label": course}

    def recording(self, utterance: Utterance, snr: float | None = None) -> Content:
        """The utterance, changed by `augment`, as a content item."""
        waveform = augment(utterance.waveform, self.rng, snr)
        return {"type": "audio", "audio": (waveform, SAMPLE_RATE), "label": utterance.text}

    def sentence(self) -> Utterance:
        """A spoken sentence of the split."""
        return self._speaker().sentence(self.rng)

    def question(self, facts: list[Fact]) -> tuple[Utterance, str] | None:
        """One of the facts as a spoken question with its answer; None if none of them can be spoken."""
        rng = self.rng
        for index in rng.permutation(len(facts)):
            utterance = self._speaker().question(rng, spoken_forms(facts[index]))
            if utterance is not None:
                return utterance, facts[index].answer
        return None

    def command(self) -> Utterance:
        """A spoken request for a picture of one shape."""
        command = self._speaker().command(self.rng)
        if command is None:
            raise ValueError("this pool has no command to draw; make a larger one")
        return command

    def _speaker(self) -> Speaker:
        if self.speaker is None:
            raise ValueError("this row needs a speaker; pass speaker=SpeechPool(directory) or LiveSpeaker(split)")
        return self.speaker


def sample_chat(
    row: str,
    rng: np.random.Generator,
    split: str,
    speaker: Speaker | None = None,
    dense: bool = False,
    max_side: int = MAX_SIDE,
) -> Sample:
    """One random chat.

    Args:
        row: a key of `ROWS`.
        rng: source of all randomness.
        split: "train" or "test".
        speaker: a `SpeechPool` or `LiveSpeaker` of the same split; rows without audio do not need it.
        dense: for training: 5 questions and a description about the same medium (text_only: 6 questions; speech rows:
            as many as possible). Otherwise, for evaluation, one question (multi_turn: one chain).
        max_side: largest side of a picture in pixels, 64 to 256.

    Raises:
        ValueError: unknown row or split, a missing speaker, or one of the other split.
    """
    if row not in ROWS:
        raise ValueError(f"row must be one of {tuple(ROWS)}, got {row!r}")
    check_split(split)
    if speaker is not None and speaker.split != split:
        raise ValueError(f"the speaker belongs to split {speaker.split!r}, the sample to {split!r}; use one split")
    media, turns = ROWS[row](Studio(rng, split, speaker, dense, max_side))
    sample = Sample(to_messages(media, turns), row, pictures=tuple(turn.picture for turn in turns))
    return replace(sample, labels=tuple(item.pop("label") for item in sample.media))


def to_messages(media: list[Content], turns: list[Turn]) -> list[dict[str, Any]]:
    """Messages of a chat: the media and the first question, its answer, further questions and answers."""
    messages: list[dict[str, Any]] = []
    for turn in turns:
        content = [*(media if not messages else []), *turn.media]
        content += [{"type": "text", "text": turn.question}] if turn.question else []
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
    return messages


def _turn(question: Question) -> Turn:
    return Turn(question.text, question.answer)


def _distinct(draw: Callable[[], Fact], count: int) -> list[Fact]:
    """Up to `count` different facts; a simple scene may have fewer."""
    facts: list[Fact] = []
    for _ in range(4 * count):
        fact = draw()
        if fact not in facts:
            facts.append(fact)
        if len(facts) == count:
            break
    return facts


def _distinct_of(lists: list[list[Fact]]) -> list[Fact]:
    """The facts of several lists, each once."""
    facts: list[Fact] = []
    for fact in (fact for some in lists for fact in some):
        if fact not in facts:
            facts.append(fact)
    return facts


def _scene_turns(studio: Studio, scene: Scene, kinds: tuple[str, ...]) -> list[Turn]:
    """Turns about one picture: one of `kinds`, or when dense of all kinds and a description."""
    rng = studio.rng
    if not studio.dense:
        return [_turn(word(sample_fact(scene, rng, kinds), rng))]
    kinds = (*QA_KINDS, "count", "count_by", "count_by", "yes_no", "yes_no")
    facts = _distinct(lambda: sample_fact(scene, rng, kinds), NUM_DENSE_TURNS)
    # The description sometimes comes first: then no question gives a hint about the picture.
    facts.insert(int(rng.choice((0, len(facts)))), Fact("describe", describe_scene(scene)))
    return [_turn(word(fact, rng)) for fact in facts]


def _clip_turns(studio: Studio, clip: Clip) -> list[Turn]:
    """Turns about one clip: one, or when dense all kinds."""
    rng = studio.rng
    if not studio.dense:
        return [_turn(word(sample_clip_fact(clip, rng), rng))]
    facts = list(clip_facts(clip, rng).values())
    return [_turn(word(facts[index], rng)) for index in rng.permutation(len(facts))]


def _image_qa(studio: Studio) -> tuple[list[Content], list[Turn]]:
    scene = studio.scene()
    return [studio.picture(scene)], _scene_turns(studio, scene, QA_KINDS)


def _image_count_describe(studio: Studio) -> tuple[list[Content], list[Turn]]:
    scene = studio.scene()
    return [studio.picture(scene)], _scene_turns(studio, scene, COUNT_KINDS)


def _two_images(studio: Studio) -> tuple[list[Content], list[Turn]]:
    rng = studio.rng
    first = studio.scene()
    # Half of the pairs share the background, so that "the same?" is answered yes as often as no.
    others = [colour for colour in COLOURS if colour != first.background]
    background = first.background if rng.random() < 0.5 else choose(rng, others)
    second = studio.scene(background=background)
    facts = pair_facts(first, second, rng)
    if studio.dense:  # questions about pairs are learned late, so they are frequent
        facts = _distinct_of([facts, *(pair_facts(first, second, rng) for _ in range(NUM_WHICH - 1))])
    questions = [word(facts[index], rng) for index in rng.permutation(len(facts))]
    for name, scene in (("first", first), ("second", second)):
        inner = word(sample_fact(scene, rng, (*QA_KINDS, "count", "yes_no")), rng)
        questions.append(replace(inner, text=_about(f"{name} picture", inner.text, rng)))
    if not studio.dense:
        questions = [choose(rng, questions) if rng.random() < 0.4 else questions[0]]
    elif rng.random() < DESCRIBED_PAIRS:
        name, scene = choose(rng, (("first", first), ("second", second)))
        questions.append(Question("describe", f"Describe the {name} picture.", describe_scene(scene)))
    return [studio.picture(first), studio.picture(second)], [_turn(question) for question in questions]


def _about(medium: str, question: str, rng: np.random.Generator) -> str:
    """A question that names the medium it is about."""
    lowered = question[0].lower() + question[1:]
    return choose(rng, IN_MEDIUM).format(medium=medium, question=lowered, Question=question)


def _multi_turn(studio: Studio) -> tuple[list[Content], list[Turn]]:
    """A chain about "it" in a picture of one shape, about a named shape among several, or a free sequence."""
    rng = studio.rng
    chain = choose(rng, ("single", "named", "free"))
    scene = studio.scene(num_shapes=1 if chain == "single" else None)
    named = unique_by(scene.shapes, "kind")
    if chain == "free" or (chain == "named" and not named):
        kinds = (*QA_KINDS, "count", "count_by", "yes_no")
        facts = _distinct(lambda: sample_fact(scene, rng, kinds), NUM_DENSE_TURNS if studio.dense else 3)
        return [studio.picture(scene)], [_turn(word(fact, rng)) for fact in facts]
    if chain == "single":
        facts = [*pronoun_facts(scene.shapes[0]), *scene_facts(scene)["background"]]
        order = rng.permutation(len(facts))
        facts = [facts[index] for index in order]
        first = word(facts.pop(0), rng)
    else:
        shape = choose(rng, named)
        facts = [fact for fact in pronoun_facts(shape) if fact.kind != "it_shape"]
        facts = [facts[index] for index in rng.permutation(len(facts))]
        kind = {"it_colour": "colour_of_shape", "it_where": "position_of_shape", "it_size": "size_of_shape"}
        asked = facts.pop(0)
        first = word(Fact(kind[asked.kind], asked.answer, {"shape": shape.kind}), rng)
    count = len(facts) if studio.dense else int(rng.integers(1, len(facts) + 1))
    turns = [_turn(first)] + [_turn(word(fact, rng, FOLLOW_UPS[fact.kind])) for fact in facts[:count]]
    if studio.dense:
        turns.append(_turn(word(Fact("describe", describe_scene(scene)), rng)))
    return [studio.picture(scene)], turns


def _video_qa(studio: Studio) -> tuple[list[Content], list[Turn]]:
    clip = sample_clip(studio.rng, studio.split)
    return [studio.video(clip)], _clip_turns(studio, clip)


def _asr(studio: Studio) -> tuple[list[Content], list[Turn]]:
    utterance = studio.sentence()
    return [studio.recording(utterance)], [Turn(choose(studio.rng, TRANSCRIBE), utterance.text)]


def _asr_noisy(studio: Studio) -> tuple[list[Content], list[Turn]]:
    utterance = studio.sentence()
    return [studio.recording(utterance, NOISY_SNR)], [Turn(choose(studio.rng, TRANSCRIBE), utterance.text)]


def _spoken_facts(scene: Scene, rng: np.random.Generator) -> list[Fact]:
    """Facts about a scene for spoken questions: one per kind, so that no kind outweighs the others."""
    facts = [choose(rng, facts) for facts in scene_facts(scene).values()]
    return [*facts, sample_yes_no(scene, rng), sample_yes_no(scene, rng), sample_count_by(scene, rng)]


def _spoken_question(studio: Studio) -> tuple[list[Content], list[Turn]]:
    """Spoken questions about one picture: one, or when dense several, some of them also transcribed."""
    rng = studio.rng
    asked = None
    while asked is None:  # a small pool may lack every question about a scene
        scene = studio.scene()
        asked = studio.question(_spoken_facts(scene, rng))
    picture, recording = studio.picture(scene), studio.recording(asked[0])
    if not studio.dense:
        turns = [Turn(choose(rng, ANSWER_SPOKEN), asked[1])]
    else:
        turns = _spoken_turns(rng, *asked)
        for _ in range(NUM_SPOKEN_TURNS - 1):
            if (asked := studio.question(_spoken_facts(scene, rng))) is not None:
                turns += _spoken_turns(rng, *asked, media=(studio.recording(asked[0]),))
    return [(picture, recording)[index] for index in rng.permutation(2)], turns


def _spoken_turns(
    rng: np.random.Generator, utterance: Utterance, answer: str, media: tuple[Content, ...] = ()
) -> list[Turn]:
    """A spoken question and its answer; sometimes its transcription is asked for as well."""
    where = rng.random()
    if where < REPEATED_BEFORE:
        return [Turn(choose(rng, ASK_AGAIN), utterance.text, media), Turn("Answer the spoken question.", answer)]
    turns = [Turn(choose(rng, ANSWER_SPOKEN), answer, media)]
    if where < REPEATED_BEFORE + REPEATED_AFTER:
        turns.append(Turn(choose(rng, ASK_AGAIN), utterance.text))
    return turns


def _mixed(studio: Studio) -> tuple[list[Content], list[Turn]]:
    """Several media in one prompt; the question names the medium it is about, or is itself spoken."""
    rng = studio.rng
    names = choose(rng, MEDIA_OF_MIXED)
    scene, clip = studio.scene(), sample_clip(rng, studio.split)
    media: dict[str, Content] = {}
    turns: list[Turn] = []
    spoken = None
    if "audio" in names:
        medium = choose(rng, [name for name in names if name != "audio"])
        facts = _spoken_facts(scene, rng) if medium == "image" else list(clip_facts(clip, rng).values())
        spoken = studio.question(facts) if rng.random() < 0.5 else None
        utterance = studio.sentence() if spoken is None else spoken[0]
        media["audio"] = studio.recording(utterance)
        if spoken is not None:
            name = "picture" if medium == "image" else "video"
            turns.append(Turn(choose(rng, ANSWER_ABOUT).format(medium=name), spoken[1]))
        turns.append(Turn(choose(rng, TRANSCRIBE) if spoken is None else choose(rng, ASK_AGAIN), utterance.text))
    if "image" in names:
        media["image"] = studio.picture(scene)
        for fact in _distinct(lambda: sample_fact(scene, rng, (*QA_KINDS, "count", "count_by", "yes_no")), 2):
            question = word(fact, rng)
            turns.append(Turn(_about("picture", question.text, rng), question.answer))
        turns.append(Turn("Describe the picture.", describe_scene(scene)))
    if "video" in names:
        media["video"] = studio.video(clip)
        for fact in _distinct(lambda: sample_clip_fact(clip, rng), 2):
            question = word(fact, rng)
            turns.append(Turn(_about("video", question.text, rng), question.answer))
        turns.append(Turn("Describe the video.", describe_clip(clip)))
    order = rng.permutation(len(turns))
    # A spoken question that stands alone is answered, not transcribed; a third of the single questions are spoken.
    if not studio.dense:
        order = [0 if spoken is not None and rng.random() < 0.6 else order[0]]
    shown = [media[names[index]] for index in rng.permutation(len(names))]
    return shown, [turns[index] for index in order]


def _edit_turns(studio: Studio, picture: Picture, count: int, edits: tuple[str, ...] = EDITS) -> list[Turn]:
    """Requests to change a picture, one after another; each answer describes the whole picture."""
    rng = studio.rng
    turns: list[Turn] = []
    for number in range(count):
        if choose(rng, edits) == "outline" and not picture.outline:
            command, picture = choose(rng, OUTLINE), picture._replace(outline=True)
        else:
            command, scene = sample_edit(picture.scene, rng)
            picture = picture._replace(scene=scene)
        if number and rng.random() < 0.5:
            command = f"Now {command[0].lower()}{command[1:]}"
        turns.append(Turn(command, describe_scene(picture.scene), picture=picture))
    return turns


def _drawing(studio: Studio) -> tuple[list[Content], list[Turn]]:
    """A request for a picture of one shape, or when dense sometimes of two; a dense one of one shape has edits."""
    rng = studio.rng
    count = 2 if studio.dense and rng.random() < 0.25 else 1
    picture = Picture(studio.scene(num_shapes=count))
    turns = [Turn(draw_command(picture.scene, rng), describe_scene(picture.scene), picture=picture)]
    return [], turns + _edit_turns(studio, picture, NUM_DENSE_EDITS if studio.dense and count == 1 else 0)


def _spoken_drawing(studio: Studio) -> tuple[list[Content], list[Turn]]:
    """A spoken request for a picture of one shape; when dense, edits follow."""
    utterance = studio.command()
    scene = read_command(utterance.text)
    if scene is None:
        raise ValueError(f"{utterance.text!r} is not a command to draw; check the command() of the speaker")
    picture = Picture(scene)
    turns = [Turn("", describe_scene(picture.scene), picture=picture)]
    turns += _edit_turns(studio, picture, NUM_DENSE_EDITS if studio.dense else 0)
    return [studio.recording(utterance)], turns


def _editing(studio: Studio) -> tuple[list[Content], list[Turn]]:
    """A picture of one shape and a request to change it; when dense several, also to outlines."""
    picture = Picture(studio.scene(num_shapes=1))
    count, edits = (NUM_DENSE_EDITS, EDITS) if studio.dense else (1, EDITS[:1])
    return [studio.picture(picture.scene)], _edit_turns(studio, picture, count, edits)


def _scene_editing(studio: Studio) -> tuple[list[Content], list[Turn]]:
    """A picture of two or three shapes and a request to change it; when dense several, also to outlines."""
    picture = Picture(studio.scene(num_shapes=choose(studio.rng, (2, 3))))
    count, edits = (NUM_DENSE_EDITS, EDITS) if studio.dense else (1, EDITS[:1])
    return [studio.picture(picture.scene)], _edit_turns(studio, picture, count, edits)


def _redrawing(studio: Studio) -> tuple[list[Content], list[Turn]]:
    """Requests for pictures that have nothing to do with the one before."""
    pictures = [Picture(studio.scene(num_shapes=1)) for _ in range(NUM_DRAWINGS)]
    return [], [
        Turn(draw_command(picture.scene, studio.rng), describe_scene(picture.scene), picture=picture)
        for picture in pictures
    ]


def _style(studio: Studio) -> tuple[list[Content], list[Turn]]:
    """A picture of one shape and a request for it in outline."""
    picture = Picture(studio.scene(num_shapes=1))
    return [studio.picture(picture.scene)], _edit_turns(studio, picture, 1, EDITS[-1:])


def _edits(studio: Studio) -> tuple[list[Content], list[Turn]]:
    """A picture is requested and then changed, without an image in the chat."""
    picture = Picture(studio.scene(num_shapes=1))
    turns = [Turn(draw_command(picture.scene, studio.rng), describe_scene(picture.scene), picture=picture)]
    return [], turns + _edit_turns(studio, picture, NUM_DENSE_EDITS if studio.dense else 1, EDITS[:1])


def _text_only(studio: Studio) -> tuple[list[Content], list[Turn]]:
    count = NUM_DENSE_TURNS + 1 if studio.dense else 1
    return [], [_turn(sample_text_question(studio.rng, studio.split)) for _ in range(count)]


ROWS: dict[str, Callable[[Studio], tuple[list[Content], list[Turn]]]] = {
    "image_qa": _image_qa,
    "image_count_describe": _image_count_describe,
    "two_images": _two_images,
    "multi_turn": _multi_turn,
    "video_qa": _video_qa,
    # The same for both encoders; the caller chooses the encoder.
    "asr_sanm": _asr,
    "asr_whisper": _asr,
    "asr_noisy": _asr_noisy,
    "spoken_question": _spoken_question,
    "mixed": _mixed,
    "text_only": _text_only,
    "drawing": _drawing,
    "spoken_drawing": _spoken_drawing,
    "editing": _editing,
    "edits": _edits,
    "style": _style,
    "scene_editing": _scene_editing,
    "redrawing": _redrawing,
}
