"""Entry point of a checkout: `from modeling_bailingmm import BailingMMNativeForConditionalGeneration`."""

from ming.modeling_bailingmm import *  # noqa: F403
from ming.modeling_bailingmm import __all__ as __all__
