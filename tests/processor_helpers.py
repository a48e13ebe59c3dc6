"""What the processor's tests share: the repository on `sys.path`, the goldens, a processor with released limits."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOLDENS = Path(__file__).resolve().parent / "goldens" / "processor"
for folder in (ROOT, GOLDENS):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from transformers import AutoTokenizer, Qwen2VLImageProcessorPil  # noqa: E402

from ming.audio_features import BailingMMFeatureExtractor  # noqa: E402
from ming.processing_bailingmm import BailingMMProcessor  # noqa: E402
from ming.release_files import read_cmvn  # noqa: E402


def golden(name: str):
    return json.loads((GOLDENS / name).read_text(encoding="utf-8"))


def released_processor(**options) -> BailingMMProcessor:
    """A processor with the released limits and the goldens' tokenizer."""
    shift, scale = read_cmvn(GOLDENS / "am.mvn")
    return BailingMMProcessor(
        Qwen2VLImageProcessorPil(min_pixels=78_400, max_pixels=802_816),
        BailingMMFeatureExtractor(cmvn_shift=shift, cmvn_scale=scale),
        AutoTokenizer.from_pretrained(GOLDENS / "tokenizer"),
        chat_template=(ROOT / "chat_template.jinja").read_text(encoding="utf-8"),
        **options,
    )


def encode(processor: BailingMMProcessor, *args, **options):
    """What a call returns as tensors; without `return_tensors`, token ids are lists."""
    return processor(*args, **{"return_tensors": "pt", **options})
