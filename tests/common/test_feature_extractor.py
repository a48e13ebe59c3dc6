"""The feature extractor through `FeatureExtractionSavingTestMixin`.

`SequenceFeatureExtractionTestMixin` does not apply: it tests `pad`, `padding_value` and truncation, which belong to
the library's `SequenceFeatureExtractor`. Ours joins the recordings of a prompt and pads prompts, not recordings.
"""

import unittest

from library_tests.test_feature_extraction_common import FeatureExtractionSavingTestMixin

from ming.audio_features import BailingMMFeatureExtractor


class FeatureExtractorTest(FeatureExtractionSavingTestMixin, unittest.TestCase):
    feature_extraction_class = BailingMMFeatureExtractor
    feat_extract_dict = {"sampling_rate": 8000, "num_mel_bins": 40, "lfr_m": 5, "max_seconds": 12.5, "mono": "first"}
