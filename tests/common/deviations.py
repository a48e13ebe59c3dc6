"""Where Ming deviates from the library's common tests, and why; the run fails when a deviation no longer occurs.

Names are `file::class::test` with `*` for anything.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Deviation:
    """A test that fails here.

    Args:
        tests: pattern of names.
        reason: one sentence.
        releases: of transformers, for which this holds, in the words of pip.
    """

    tests: str
    reason: str
    releases: str = ""


DEVIATIONS = (
    Deviation(
        "*::test_generation_tester_mixin_inheritance",
        "The test wants `GenerationTesterMixin`, which the archive lacks; generation is tested in tests/.",
    ),
    Deviation(
        "test_model::Image*::test_model_base_model_prefix",
        "The test's assumption: the model is no head on a base model, its parts stand side by side as released.",
    ),
    Deviation(
        "test_model::*WithTalkerTest::test_tied_weights_keys",
        "The test's assumption: the talker has its own configuration, and tying the decoder's does not tie it.",
    ),
    Deviation(
        "test_model::Image*::test_model_weights_reload_no_missing_tied_weights",
        "By design: `from_pretrained` refuses an incomplete checkpoint; LibraryLoadingTest passes without that check.",
    ),
    Deviation(
        "test_processor::*::test_processor_with_multiple_inputs",
        "The test's assumption: it gives no video to its `<video>` as there is no `video_processor` attribute.",
        ">=5.19",
    ),
    Deviation(
        "test_processor::*::test_apply_chat_template_image_*",
        "The test's assumption: one row of pixels per image; later releases count by the grid, as Qwen's models need.",
        "<5.19",
    ),
    Deviation(
        "test_processor::*::test_processor_from_and_save_pretrained_as_nested_dict",
        "By design: images are processed by PIL, as released; `AutoImageProcessor` takes torchvision if installed.",
    ),
    Deviation(
        "test_processor::*::test_apply_chat_template_assistant_mask",
        "By design: replies are found by Ming's role headers, not by `{% generation %}`; other formats are refused.",
    ),
)

# Reasons that skipped tests give, as regular expressions. Hardware or a package is missing:
MISSING = (r"^test requires ",)
# Patterns of "test: reason" where the test does not apply, and why.
SKIPS = (
    (
        r"video_processor attribute not present|Processor has no video processor|Processor doesn't accept videos",
        "There is no `video_processor`: ming/video.py reads videos; tests/test_processor_media.py tests it.",
    ),
    (r"Chat template does not support tools", "The model calls no tools."),
    (
        r"test_replacement_offsets: ",
        "Offsets of replaced placeholders, which vLLM's backend may ask for, are not made.",
    ),
    (r"tokenizer doesn't accept chat templates", "The template belongs to the processor."),
    (
        r"test_integration|test_prepare_seq2seq_batch",
        "Ids of one tokenizer of the Hub, and translation.",
    ),
    (
        r"Not a prioritized model",
        "The test goes by the year in a file's licence; LibraryLoadingTest runs it where the release lets it.",
    ),
    (r"not an encoder-decoder|No sequence-to-sequence", "The decoder has no encoder."),
    (r"no _keep_in_fp32_modules", "No module is kept in float32 by its name."),
    (r"no `base_model_class`|no sparse experts", "Asked of the decoder, by DecoderTest."),
    (
        r"No subconfigs|not (a )?composite|test_sdpa_can_dispatch_\w+: \w+ does not support SDPA",
        "Of two tests, for models with and without parts, the other one applies.",
    ),
    (
        r"cannot test composite SDPA dispatch",
        "The test knows other names of the parts than the released ones; tests/test_weights.py tests it.",
    ),
    (
        r"does not have position embeddings|partial rope|no axial RoPE",
        "Positions are rotary, in all values of a head.",
    ),
    (r"no standardized RoPE module", "The test of 5.19 looks for an argument that the library's own layer dropped."),
    (r"does not support sliding window", "The released sizes have no window; tests/test_model.py tests one."),
)
