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
# The test does not apply, and why.
SKIPS = (
    (
        r"video_processor attribute not present",
        "Videos are read and cut into patches by ming/video.py and the "
        "processor, which has no `video_processor`; tests/test_processor_media.py tests them.",
    ),
    (r"Processor has no video processor|Processor doesn't accept videos", "The same."),
    (r"Chat template does not support tools", "The model calls no tools."),
    (
        r"Processor doesn't support `_get_num_multimodal_tokens`",
        "It does; replacement offsets, which the test reads, are not made.",
    ),
    (r"tokenizer doesn't accept chat templates", "The template belongs to the processor."),
    (
        r"No integration expected|TokenizersExtractor not enabled|test_seq2seq",
        "Tests of one tokenizer's ids, of another kind of vocabulary file, and of translation.",
    ),
    (r"Not a prioritized model", "The test goes by the year in a file's licence; LibraryLoadingTest runs it."),
    (r"not an encoder-decoder|No sequence-to-sequence", "The decoder has no encoder."),
    (r"no _keep_in_fp32_modules", "No module is kept in float32 by its name."),
    (r"no `base_model_class`|no sparse experts", "Asked of the decoder, by DecoderTest."),
    (
        r"No subconfigs|not (a )?composite|does not support SDPA",
        "One of two tests, for models with parts and without, applies.",
    ),
    (r"cannot test composite SDPA dispatch", "The parts have their released names; tests/test_weights.py tests it."),
    (r"does not have position embeddings|partial rope|no axial RoPE", "Rotary positions of all values of a head."),
    (r"does not support sliding window", "The whole model's sizes have no window; DecoderTest runs it."),
)
