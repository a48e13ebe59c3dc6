"""Ming-Tiny's tokenizer through `TokenizerTesterMixin`."""

import unittest

from library import ROOT
from library_tests.test_tokenization_common import TokenizerTesterMixin
from transformers import PreTrainedTokenizerFast


class TokenizerTest(TokenizerTesterMixin, unittest.TestCase):
    tokenizer_class = PreTrainedTokenizerFast
    from_pretrained_id = [str(ROOT)]
    test_tokenizer_from_extractor = False
    test_seq2seq = False
