"""The whole model through the library's `ModelTesterMixin`."""

import unittest

from library_tests.test_modeling_common import ModelTesterMixin
from tiny import OmniTester
from transformers import PreTrainedModel

from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration


class LibraryLoadingModel(BailingMMNativeForConditionalGeneration):
    """The model without our check that a checkpoint is complete."""

    from_pretrained = classmethod(PreTrainedModel.from_pretrained.__func__)


class OmniModelTest(ModelTesterMixin):
    all_model_classes = (BailingMMNativeForConditionalGeneration,)
    _is_composite = True
    # Experts that no token visits, and parts whose kind of medium the inputs lack, get no gradients.
    test_all_params_have_gradient = False
    skip_test_audio_features_output_shape = True  # the test asks for inputs of other names


class ImageAndSanmWithTalkerTest(OmniModelTest, unittest.TestCase):
    def setUp(self):
        self.model_tester = OmniTester(encoder="sanm", video=False, talker=True)


class ImageVideoAndWhisperTest(OmniModelTest, unittest.TestCase):
    def setUp(self):
        self.model_tester = OmniTester(encoder="whisper", video=True, talker=False)


class LibraryLoadingTest(unittest.TestCase):
    """Tests that load checkpoints with missing weights, which our `from_pretrained` refuses."""

    all_model_classes = (LibraryLoadingModel,)
    test_can_init_all_missing_weights_before_2023 = True
    test_can_init_all_missing_weights = ModelTesterMixin.test_can_init_all_missing_weights
    test_model_weights_reload_no_missing_tied_weights = (
        ModelTesterMixin.test_model_weights_reload_no_missing_tied_weights
    )

    def setUp(self):
        self.model_tester = OmniTester(encoder="sanm", video=False, talker=True)
