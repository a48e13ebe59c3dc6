"""The processor through `ProcessorTesterMixin`."""

import unittest

from library import ROOT
from library_tests.test_processing_common import ProcessorTesterMixin
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

from ming.audio_features import BailingMMFeatureExtractor
from ming.processing_bailingmm import BailingMMProcessor


class ProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = BailingMMProcessor
    audio_input_name = audio_input_name_values = "audio_feats"

    @classmethod
    def _setup_image_processor(cls):
        return Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=4 * 28 * 28)

    @classmethod
    def _setup_feature_extractor(cls):
        return BailingMMFeatureExtractor()

    @classmethod
    def _setup_tokenizer(cls):
        return AutoTokenizer.from_pretrained(ROOT)

    @staticmethod
    def prepare_processor_dict():
        return {"chat_template": (ROOT / "chat_template.jinja").read_text(encoding="utf-8")}
