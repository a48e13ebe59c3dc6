"""Ming-Lite-Omni as an installed package: importing it registers the classes with transformers' Auto classes.

After `import ming`, a directory that holds only config and weights loads by `AutoModel...from_pretrained` without
`trust_remote_code`.
"""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from audio_detokenizer.configuration_audio_detokenizer import AudioDetokenizerConfig
from image_gen.configuration_image_gen import ImageGenConfig
from ming.audio_features import BailingMMFeatureExtractor
from ming.compat import silent_about_kernels
from ming.configuration_bailingmm import BailingMMConfig
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.processing_bailingmm import BailingMMProcessor

with silent_about_kernels():
    from audio_detokenizer.modeling_audio_detokenizer import AudioDetokenizer
    from image_gen.modeling_image_gen import ImageGen

AutoConfig.register("bailingmm", BailingMMConfig, exist_ok=True)
AutoConfig.register("bailingmm_audio_detokenizer", AudioDetokenizerConfig, exist_ok=True)
AutoModel.register(AudioDetokenizerConfig, AudioDetokenizer, exist_ok=True)
AutoConfig.register("bailingmm_image_gen", ImageGenConfig, exist_ok=True)
AutoModel.register(ImageGenConfig, ImageGen, exist_ok=True)
AutoFeatureExtractor.register(BailingMMConfig, BailingMMFeatureExtractor, exist_ok=True)
AutoProcessor.register(BailingMMConfig, BailingMMProcessor, exist_ok=True)
for auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    auto_class.register(BailingMMConfig, BailingMMNativeForConditionalGeneration, exist_ok=True)

__all__ = [
    "AudioDetokenizer",
    "AudioDetokenizerConfig",
    "BailingMMConfig",
    "BailingMMFeatureExtractor",
    "BailingMMNativeForConditionalGeneration",
    "BailingMMProcessor",
    "ImageGen",
    "ImageGenConfig",
]
