"""Options that callers of the library's processors pass as a matter of course, and what they get without any."""

import numpy as np
import pytest
import torch
from PIL import Image
from processor_helpers import GOLDENS, encode, golden, released_processor
from transformers import AutoTokenizer

CHATS = [
    [{"role": "user", "content": "one"}],
    [{"role": "user", "content": "one and many more words"}],
]
FINISHED = [*CHATS[0], {"role": "assistant", "content": "two"}]
HEADER = "<role>ASSISTANT</role>"


@pytest.fixture(scope="module")
def processor():
    return released_processor()


def noise(seed=0, size=(84, 56)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


# Without `return_tensors`


def test_several_prompts_are_lists_without_padding(processor):
    """What GRPO and RLOO call: a row of padding would be trained on as if it were the prompt."""
    alone = [encode(processor, processor.apply_chat_template(chat))["input_ids"][0].tolist() for chat in CHATS]
    together = processor.apply_chat_template(
        conversation=CHATS, tools=None, chat_template=None, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert together["input_ids"] == alone and len(alone[0]) < len(alone[1])
    assert together["attention_mask"] == [[1] * len(row) for row in alone]
    assert processor(text=processor.apply_chat_template(CHATS))["input_ids"] == alone
    assert processor.apply_chat_template(CHATS[0], tokenize=True) == alone[:1]


def test_padding_can_be_asked_for_without_tensors(processor):
    padded = processor(["a", "a b c d e"], padding=True)
    rows, masks = padded["input_ids"], padded["attention_mask"]
    assert isinstance(rows, list) and len(rows[0]) == len(rows[1])
    assert masks[0] == [0] * (len(rows[0]) - 1) + [1] and masks[1] == [1] * len(rows[1])


def test_media_are_tensors_unless_lists_are_asked_for(processor):
    assert isinstance(processor("<image>", images=noise())["pixel_values"], torch.Tensor)
    assert isinstance(processor("<image>", images=noise(), return_tensors=None)["pixel_values"], np.ndarray)


def test_tensors_of_processor_kwargs_are_tensors(processor):
    options = {"processor_kwargs": {"return_tensors": "pt", "padding": True, "pad_to_multiple_of": 16}}
    inputs = processor.apply_chat_template(CHATS, tokenize=True, return_dict=True, **options)
    assert isinstance(inputs["input_ids"], torch.Tensor) and inputs["input_ids"].shape[1] % 16 == 0


# The generation prompt


def test_a_finished_conversation_gets_no_generation_prompt(processor):
    assert processor.apply_chat_template(CHATS[0]).endswith(HEADER)
    finished = processor.apply_chat_template(FINISHED)
    assert finished == f"<role>HUMAN</role>one{HEADER}two<role>HUMAN</role>"
    assert processor.apply_chat_template(FINISHED, add_generation_prompt=True) == finished + HEADER
    assert not processor.apply_chat_template(CHATS[0], add_generation_prompt=False).endswith(HEADER)
    # Each conversation of a batch for itself.
    batch = processor.apply_chat_template([FINISHED, CHATS[0]])
    assert batch == [finished, processor.apply_chat_template(CHATS[0])]


# Options


@pytest.mark.parametrize(
    "options",
    [
        {"add_special_tokens": False},
        {"add_special_tokens": True},
        {"return_mm_token_type_ids": True},
        {"return_attention_mask": True},
        {"return_token_type_ids": False},
        {"do_sample_frames": True},
        {"do_rescale": True, "rescale_factor": 1 / 255},
        {"images_kwargs": {"do_resize": True, "do_normalize": True}},
        {"text_kwargs": {"add_special_tokens": False}, "videos_kwargs": {"do_sample_frames": True}},
        {"truncation": False},
        {"truncation": "do_not_truncate"},
        {"truncation": True, "max_length": 4000},
        {"padding": "do_not_pad"},
        {"padding": "longest"},
        {"fps": None, "num_frames": None, "video_metadata": None},
        {"verbose": False, "sanitize_control_tokens": True},
    ],
    ids=str,
)
def test_options_of_the_library_that_change_nothing(processor, options):
    plain = encode(processor, "<image>what?", images=noise())
    same = encode(processor, "<image>what?", images=noise(), **options)
    assert set(same) == set(plain) and all(torch.equal(same[name], plain[name]) for name in plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"return_overflowing_tokens": True}, "return_overflowing_tokens=True is not accepted"),
        ({"return_mm_token_type_ids": "yes"}, "return_mm_token_type_ids='yes' is not accepted"),
        ({"use_whisper_encoder": torch.zeros(0)}, r"use_whisper_encoder=<Tensor of shape \(0,\) .* is not accepted"),
        ({"truncation": np.zeros(3)}, "truncation=.* is not accepted"),
        ({"padding": "always"}, "padding='always' is not accepted"),
    ],
)
def test_options_that_would_change_something_are_refused(processor, options, message):
    with pytest.raises(ValueError, match=message):
        processor("x", **options)


def test_misspelt_options_are_still_named(processor):
    for call in (processor, processor.apply_chat_template):
        prompt = "x" if call is processor else CHATS[0]
        for options in ({"max_pixel": 9}, {"images_kwargs": {"do_rezise": True}}):
            with pytest.raises(TypeError, match="unknown processor option (max_pixel|do_rezise); accepted are"):
                call(prompt, **options)
    with pytest.raises(TypeError, match="unknown video option nframe; accepted are"):
        processor.process_vision_info(
            [{"role": "user", "content": [{"type": "video", "video": [noise()] * 2}]}], videos_kwargs={"nframe": 2}
        )


@pytest.mark.parametrize(
    ("group", "name", "values"),
    [
        ("text_kwargs", "padding", ("max_length", "do_not_pad")),
        ("images_kwargs", "do_rescale", (True, True)),
        ("videos_kwargs", "fps", (1.0, 2.0)),
        ("audio_kwargs", "use_whisper_encoder", (True, False)),
        ("common_kwargs", "return_tensors", ("pt", "np")),
    ],
)
def test_options_that_are_given_twice_are_refused(processor, group, name, values):
    flat, nested = values
    with pytest.raises(ValueError, match=f"{name} is given twice, as {flat!r} and in {group} as {nested!r}"):
        processor("x", **{name: flat, group: {name: nested}})
    processor("x", return_tensors="pt", common_kwargs={"return_tensors": "pt"})


def test_token_types_can_be_left_out(processor):
    assert "mm_token_type_ids" not in processor("x", return_mm_token_type_ids=False)
    assert "attention_mask" not in processor.apply_chat_template(
        CHATS[0], tokenize=True, return_dict=True, return_attention_mask=False
    )


def test_image_options_reach_images_and_frames(processor):
    image = noise()
    raw = encode(processor, "<image>", images=image, images_kwargs={"do_rescale": False, "do_normalize": False})
    assert raw["pixel_values"].max() > 200 and raw["pixel_values"].min() >= 0
    both = encode(
        processor, "<image><video>", images=image, videos=[[image] * 2], do_rescale=False, do_normalize=False
    )
    assert both["pixel_values_videos"].max() > 200
    assert torch.equal(both["pixel_values"], raw["pixel_values"])
    of_images = {"images_kwargs": {"do_rescale": False, "do_normalize": False}}
    assert encode(processor, "<video>", videos=[[image] * 2], **of_images)["pixel_values_videos"].abs().max() < 5
    size = {"shortest_edge": 784, "longest_edge": 1600}
    assert encode(processor, "<image>", images=image, size=size)["image_grid_thw"].tolist() == [[1, 2, 2]]


@pytest.mark.parametrize("options", [{"do_resize": False}, {"images_kwargs": {"do_resize": False}}])
def test_an_image_that_stays_as_it_is_has_whole_patches(processor, options):
    whole = encode(processor, "<image>", images=noise(size=(84, 56)), **options)
    assert whole["image_grid_thw"].tolist() == [[1, 6, 4]]
    with pytest.raises(ValueError, match="do_resize=False: an image of 84 x 60 pixels .* multiples of 28, or leave"):
        processor("<image>", images=noise(size=(84, 60)), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": {"height": 56, "width": 56}}, "size has no height, width here; it takes shortest_edge and longest"),
        ({"images_kwargs": {"size": {"longest": 9}}}, "size has no longest here; it takes shortest_edge"),
    ],
)
def test_sizes_of_other_processors_are_refused(processor, options, message):
    with pytest.raises(ValueError, match=message):
        processor("<image>", images=noise(), **options)


@pytest.mark.parametrize("item", [{"type": "image", "image": noise()}, {"type": "video", "video": [noise()] * 2}])
@pytest.mark.parametrize(
    ("given", "missing"), [("resized_height", "resized_width"), ("resized_width", "resized_height")]
)
def test_half_a_size_is_refused(processor, item, given, missing):
    with pytest.raises(ValueError, match=f"{given}=56 needs {missing}, too; give both"):
        processor.process_vision_info([{"role": "user", "content": [{**item, given: 56}]}])


def test_every_frame_without_sampling(processor):
    frames = [noise(index, (56, 56)) for index in range(10)]
    assert encode(processor, "<video>", videos=[frames], do_sample_frames=False)["video_grid_thw"][0, 0] == 5
    assert encode(processor, "<video>", videos=[frames], num_frames=4)["video_grid_thw"][0, 0] == 2
    nested = {"videos_kwargs": {"do_sample_frames": False, "num_frames": 4}}
    assert encode(processor, "<video>", videos=[frames], **nested)["video_grid_thw"][0, 0] == 5


def test_text_is_truncated_and_media_are_not(processor):
    whole = processor("one two three four five six")["input_ids"][0]
    cut = processor("one two three four five six", truncation=True, max_length=3)
    assert cut["input_ids"] == [whole[:3]] and cut["attention_mask"] == [[1] * 3]
    processor.tokenizer.truncation_side = "left"
    try:
        assert processor("one two three four five six", truncation=True, max_length=3)["input_ids"] == [whole[-3:]]
    finally:
        processor.tokenizer.truncation_side = "right"
    with pytest.raises(ValueError, match="truncation to 3 tokens would cut a prompt of .* tokens that holds media"):
        processor("<image>", images=noise(), truncation=True, max_length=3)
    with pytest.raises(ValueError, match="longer than the limit of 3; .* or cut text by truncation=True"):
        processor("one two three four five six", max_length=3)


# Templates


def test_variables_of_the_users_own_template(processor):
    template = "{{ greeting }} {{ messages[0]['content'][0]['text'] }}{% if enable_thinking %} think{% endif %}"
    render = processor.apply_chat_template
    assert render(CHATS[0], chat_template=template, greeting="Hello") == "Hello one"
    assert render(CHATS[0], chat_template=template, greeting="Hi", enable_thinking=True) == "Hi one think"
    inputs = render(CHATS[0], chat_template=template, greeting="Hi", tokenize=True, return_dict=True, padding=True)
    assert processor.decode(inputs["input_ids"][0]) == "Hi one"


def test_variables_that_do_not_matter_here(processor):
    plain = processor.apply_chat_template(CHATS[0])
    assert processor.apply_chat_template(CHATS[0], enable_thinking=False, documents=None) == plain
    for options in ({"enable_thinking": True}, {"documents": [{"text": "x"}]}):
        with pytest.raises(ValueError, match="is not accepted"):
            processor.apply_chat_template(CHATS[0], **options)


# Settings that the tokenizer was loaded with


def test_settings_of_the_tokenizer_are_defaults():
    processor = released_processor()
    processor.tokenizer = AutoTokenizer.from_pretrained(GOLDENS / "tokenizer", padding="max_length", max_length=40)
    assert len(processor("one")["input_ids"][0]) == 40
    assert len(processor("one", max_length=50)["input_ids"][0]) == 50
    assert len(processor("one", padding=False)["input_ids"][0]) == len(released_processor()("one")["input_ids"][0])
    with pytest.raises(ValueError, match="longer than the limit of 40"):
        processor("one " * 60)


def test_released_rows_stay_as_they_are(processor):
    case = golden("chat.json")["conversations"][0]
    assert isinstance(processor.apply_chat_template(case["messages"], tokenize=True, return_tensors="np"), np.ndarray)


# TRL


def test_collators_of_trl(processor):
    collators = pytest.importorskip("trl.trainer.sft_trainer")
    chat = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "noise"}]
    rows = [{"messages": [dict(message) for message in chat], "images": [noise(seed)]} for seed in range(2)]
    batch = collators.DataCollatorForVisionLanguageModeling(processor)(rows)
    assert batch["input_ids"].shape == batch["labels"].shape and len(batch["image_grid_thw"]) == 2
    text = processor.decode(batch["input_ids"][0])
    assert text.count(HEADER) == 1  # one header: that of the reply
    rows = [{"prompt": chat[:1], "completion": chat[1:], "images": [noise()]}]
    batch = collators.DataCollatorForVisionLanguageModeling(processor)([dict(row) for row in rows])
    assert "noise" in processor.decode(batch["input_ids"][0])
