"""Wrong inputs end as one ValueError that names the offending value and what is accepted."""

import pytest
import torch
from thinker_helpers import Chat, batch, tiny_config, tiny_model

from ming.configuration_bailingmm import BailingMMAudioConfig, BailingMoeConfig

PARTS = {"load_vision": "image", "load_audio": "sanm", "load_whisper": "whisper"}


def inputs_with(kind):
    if kind in ("image", "video"):
        return batch([getattr(Chat(41).text(3), kind)().text(2)])
    return batch([Chat(41, kind).text(3).audio(9).text(2)])


@pytest.mark.parametrize("call", ["forward", "generate"])
@pytest.mark.parametrize("kind", ["image", "video", "audio"])
def test_too_few_features_names_both_numbers(tiny, kind, call):
    inputs = inputs_with("sanm" if kind == "audio" else kind)
    features = int((inputs["mm_token_type_ids"] > 0).sum())
    at = int(inputs["mm_token_type_ids"].argmax())
    for name in ("input_ids", "mm_token_type_ids", "attention_mask"):  # one more placeholder
        inputs[name] = torch.cat([inputs[name][:, : at + 1], inputs[name][:, at:]], dim=1)
    with pytest.raises(ValueError, match=rf"{features + 1} {kind} tokens but {features} {kind} features"):
        tiny(**inputs) if call == "forward" else tiny.generate(**inputs, max_new_tokens=1)


@pytest.mark.parametrize("kind", ["image", "video", "sanm"])
def test_too_many_features_names_both_numbers(tiny, kind):
    inputs = inputs_with(kind)
    features = int((inputs["mm_token_type_ids"] > 0).sum())
    at = int(inputs["mm_token_type_ids"].argmax())
    for name in ("input_ids", "mm_token_type_ids", "attention_mask"):  # one placeholder less
        inputs[name] = torch.cat([inputs[name][:, :at], inputs[name][:, at + 1 :]], dim=1)
    name = "audio" if kind == "sanm" else kind
    with pytest.raises(ValueError, match=rf"{features - 1} {name} tokens but {features} {name} features"):
        tiny(**inputs)


def test_placeholders_without_media(tiny):
    inputs = inputs_with("image")
    inputs.pop("pixel_values")
    with pytest.raises(ValueError, match="4 image tokens but 0 image features"):
        tiny.generate(**inputs, max_new_tokens=1)


def test_media_of_the_wrong_kind(tiny):
    """An image's features do not land in a video's placeholders."""
    inputs = inputs_with("image")
    inputs["pixel_values_videos"] = inputs.pop("pixel_values")
    inputs["video_grid_thw"] = inputs.pop("image_grid_thw")
    with pytest.raises(ValueError, match="4 image tokens but 0 image features"):
        tiny(**inputs)


def test_images_and_videos_without_token_types(tiny):
    inputs = batch([Chat(42).image().video()])
    inputs.pop("mm_token_type_ids")
    with pytest.raises(ValueError, match="mm_token_type_ids"):
        tiny(**inputs)


def test_audio_without_token_types_and_without_positions(tiny):
    """Without either nothing says where the audio belongs."""
    inputs = inputs_with("sanm")
    inputs.pop("mm_token_type_ids")
    with pytest.raises(ValueError, match="0 audio tokens but 9 audio features"):
        tiny(**inputs)


@pytest.mark.parametrize(
    ("kind", "flag", "message"),
    [
        ("sanm", True, "width 560 do not fit the Whisper encoder .128."),
        ("whisper", False, "width 128 do not fit the SANM encoder .560."),
    ],
)
def test_audio_for_the_other_encoder(tiny, kind, flag, message):
    with pytest.raises(ValueError, match=message):
        tiny(**inputs_with(kind), use_whisper_encoder=flag)


def test_audio_of_unknown_width(tiny):
    inputs = inputs_with("sanm")
    inputs["audio_feats"] = inputs["audio_feats"][..., :80]
    with pytest.raises(ValueError, match="width 80 do not fit the SANM encoder .560."):
        tiny(**inputs)
    with pytest.raises(ValueError, match="width 80 do not fit the Whisper encoder .128."):
        tiny(**inputs, use_whisper_encoder=True)


@pytest.mark.parametrize("flag", PARTS)
def test_absent_tower_says_what_to_load(flag):
    model = tiny_model(**{flag: False})
    with pytest.raises(ValueError, match=rf"{flag}=False; load it with {flag}=True"):
        model(**inputs_with(PARTS[flag]))
    for other, kind in PARTS.items():
        if other != flag:
            assert model(**inputs_with(kind)).logits.isfinite().all()


def test_too_long_prompt_names_both_lengths():
    model = tiny_model(llm_config={"max_position_embeddings": 16})
    ids = torch.arange(30, 47)[None]
    assert model.generate(ids[:, :15], max_new_tokens=1, eos_token_id=-1).shape == (1, 16)
    with pytest.raises(ValueError, match="the prompt has 17 tokens; the model's context is 16"):
        model.generate(ids, max_new_tokens=1)


@pytest.mark.parametrize("mode", ["smell", ["text", "smell"]])
def test_unavailable_generation_mode_lists_what_there_is(tiny, mode):
    with pytest.raises(ValueError, match=r"generation_mode='smell' is not available.*text, audio, image"):
        tiny.generate(torch.arange(30, 35)[None], generation_mode=mode, max_new_tokens=1)


def test_generation_mode_text_is_the_default(tiny):
    ids = torch.arange(30, 35)[None]
    default = tiny.generate(ids, max_new_tokens=3)
    assert torch.equal(tiny.generate(ids, max_new_tokens=3, generation_mode="text"), default)


def test_wrong_number_of_patches(tiny):
    inputs = inputs_with("image")
    inputs["pixel_values"] = inputs["pixel_values"][:-4]
    with pytest.raises(ValueError, match=r"\(16, 1176\) for image_grid_thw \[\[1, 4, 4\]\], got .*\(12, 1176\)"):
        tiny(**inputs)


@pytest.mark.parametrize("pixels", [torch.zeros(1, 3, 56, 56), torch.zeros(16, 1000), torch.zeros(16, 1176).byte()])
def test_pixels_that_are_not_patches(tiny, pixels):
    got = rf"floats of shape \(16, 1176\).*got {pixels.dtype} \({', '.join(map(str, pixels.shape))}\)"
    with pytest.raises(ValueError, match=got):
        tiny.get_image_features(pixels, torch.tensor([[1, 4, 4]]))


@pytest.mark.parametrize("grid", [None, torch.tensor([1, 4, 4]), torch.tensor([[1, 3, 5]])])
def test_missing_or_impossible_grid(tiny, grid):
    with pytest.raises(
        ValueError, match=r"image_grid_thw .* in multiples of 2 patches, got (None|\[1, 4, 4\]|\[\[1, 3, 5)"
    ):
        tiny.get_image_features(torch.zeros(16, 1176), grid)


@pytest.mark.parametrize("call", ["forward", "generate"])
def test_media_beside_embeddings(tiny, call):
    """Media are put into the embeddings where the types say so; without types they are refused."""

    def answer(**inputs):
        options = {"max_new_tokens": 3, "min_new_tokens": 3}
        return tiny(**inputs).logits if call == "forward" else tiny.generate(**inputs, **options)[:, -3:]

    inputs = inputs_with("image")
    expected = answer(**inputs)
    inputs["inputs_embeds"] = tiny.get_input_embeddings()(inputs.pop("input_ids"))
    torch.testing.assert_close(answer(**inputs), expected)
    del inputs["mm_token_type_ids"]
    with pytest.raises(ValueError, match="media beside inputs_embeds need mm_token_type_ids"):
        answer(**inputs)


def test_virtual_tokens_of_prompt_tuning_are_text(tiny):
    """PEFT puts embeddings in front of the processor's output and leaves the token types as they are."""
    inputs = inputs_with("image")
    embeds, token_types = tiny.embed(**{name: inputs[name] for name in inputs if name != "attention_mask"})
    virtual = torch.randn(1, 4, embeds.shape[-1])
    longer = torch.cat([virtual, embeds], dim=1)
    short = tiny(inputs_embeds=longer, mm_token_type_ids=token_types).logits
    padded = torch.nn.functional.pad(token_types, (4, 0))
    torch.testing.assert_close(short, tiny(inputs_embeds=longer, mm_token_type_ids=padded).logits)


def test_token_types_of_another_length(tiny):
    inputs = inputs_with("image")
    inputs["mm_token_type_ids"] = inputs["mm_token_type_ids"][:, 1:]
    with pytest.raises(ValueError, match=r"mm_token_type_ids \(1, 10\) must have the shape of input_ids \(1, 11\)"):
        tiny(**inputs)


@pytest.mark.parametrize("kind", ["sanm", "whisper"])
def test_audio_whose_lengths_are_all_zero(tiny, kind):
    inputs = inputs_with(kind)
    inputs["audio_feats_lengths"] = torch.zeros_like(inputs["audio_feats_lengths"])
    with pytest.raises(ValueError, match="every length in audio_feats_lengths is 0"):
        tiny(**inputs)


@pytest.mark.parametrize("lengths", [torch.tensor([[10, -1]]), torch.tensor([[9.0]])])
def test_audio_lengths_that_are_no_counts(tiny, lengths):
    with pytest.raises(ValueError, match="audio_feats_lengths must be counts of frames, got"):
        tiny.get_audio_features(torch.zeros(1, 9, 560), lengths)


def test_audio_that_is_not_float(tiny):
    with pytest.raises(ValueError, match="audio_feats must be floats, got torch.int64"):
        tiny.get_audio_features(torch.zeros(1, 9, 560, dtype=torch.long), torch.tensor([[9]]))


def test_audio_without_lengths(tiny):
    with pytest.raises(ValueError, match=r"got \(1, 9, 560\) and None"):
        tiny.get_audio_features(torch.zeros(1, 9, 560), None)


def test_audio_lengths_beyond_the_frames(tiny):
    inputs = inputs_with("sanm")
    inputs["audio_feats_lengths"] = torch.tensor([[6, 4]])
    with pytest.raises(ValueError, match=r"\[6, 4\] add up to more than the 9 frames"):
        tiny(**inputs)


@pytest.mark.parametrize("shape", [(9, 560), (2, 9, 560)])
def test_audio_of_the_wrong_shape(tiny, shape):
    with pytest.raises(ValueError, match=r"audio_feats must be \[B, frames, width\]"):
        tiny.get_audio_features(torch.zeros(shape), torch.tensor([[9]]))


def test_audio_longer_than_the_position_table(tiny):
    frames = 2 * tiny.config.whisper_config.max_source_positions
    (segment,) = tiny.get_audio_features(torch.zeros(1, frames, 128), torch.tensor([[frames]])).pooler_output
    assert len(segment) == frames // 4
    with pytest.raises(ValueError, match=r"audio of 1.3 s exceeds the Whisper encoder's 1 s"):
        tiny.get_audio_features(torch.zeros(1, frames + 1, 128), torch.tensor([[frames + 1]]))


def test_ids_and_embeddings_together(tiny):
    ids = torch.arange(30, 35)[None]
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        tiny.model(ids, inputs_embeds=tiny.get_input_embeddings()(ids))


def test_unknown_argument_is_named(tiny):
    with pytest.raises(ValueError, match="no_such_option"):
        tiny.generate(torch.arange(30, 35)[None], max_new_tokens=1, no_such_option=True)


def test_router_losses_need_a_two_dimensional_mask(tiny):
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"\[B, L\] attention_mask, got shape \(1, 1, 5, 5\)"):
        tiny(torch.arange(30, 35)[None], attention_mask=mask, output_router_logits=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_experts_per_tok": 9}, r"num_experts_per_tok \(9\).*num_experts \(8\)"),
        ({"num_key_value_heads": 3}, r"num_attention_heads \(4\).*num_key_value_heads \(3\)"),
        ({"use_bias": True}, "use_bias"),
        ({"norm_head": True}, "norm_head=true"),
    ],
)
def test_impossible_decoder_configs(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(llm_config=fields)


def test_unsupported_shifted_memory_kernel():
    with pytest.raises(ValueError, match="sanm_shfit=2"):
        BailingMMAudioConfig(audio_encoder_config_sanm={"sanm_shfit": 2})


def test_unknown_attention_and_experts_implementations(tiny):
    with pytest.raises(ValueError, match="no_such_kernel"):
        tiny_model().set_experts_implementation("no_such_kernel")
    with pytest.raises(ValueError, match="no_such_kernel"):
        tiny_model(attention="no_such_kernel")


def test_released_sliding_window_is_off_unless_asked():
    assert BailingMoeConfig(sliding_window=4096).sliding_window is None
    assert BailingMoeConfig(sliding_window=4096, use_sliding_window=True).sliding_window == 4096
