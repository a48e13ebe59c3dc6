"""Entry point of a checkout: `from configuration_bailingmm import BailingMMConfig`; the code is in `ming/`."""

from ming.configuration_bailingmm import *  # noqa: F403
from ming.configuration_bailingmm import __all__ as __all__
