"""The decoder, with and without its head, through `ModelTesterMixin` and `TrainingTesterMixin`."""

import unittest

from library_tests.test_configuration_common import ConfigTester
from library_tests.test_modeling_common import ModelTesterMixin
from library_tests.test_training_mixin import TrainingTesterMixin
from tiny import DecoderTester

from ming.modeling_bailing_moe import BailingMoeForCausalLM, BailingMoeModel


class DecoderTest(ModelTesterMixin, TrainingTesterMixin, unittest.TestCase):
    all_model_classes = (BailingMoeModel, BailingMoeForCausalLM)
    test_all_params_have_gradient = False  # experts that no token visits get none
    test_can_init_all_missing_weights_before_2023 = True
    model_tester = None

    def setUp(self):
        self.model_tester = DecoderTester()
        self.config_tester = ConfigTester(self, config_class=type(self.model_tester.get_config()), hidden_size=32)

    def test_config(self):
        self.config_tester.run_common_tests()
