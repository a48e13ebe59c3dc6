"""Entry point of a checkout: `from processing_bailingmm import BailingMMProcessor`; the code is in `ming/`."""

from ming.processing_bailingmm import *  # noqa: F403
from ming.processing_bailingmm import __all__ as __all__
