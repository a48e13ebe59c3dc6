"""A whole speaking model of random weights: Ming-Tiny's thinker with a small talker, codec, detokenizer and voices."""

import json
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from audio_detokenizer.configuration_audio_detokenizer import AudioDetokenizerConfig
from audio_detokenizer.modeling_audio_detokenizer import AudioDetokenizer
from ming.codec_bpe import CodecBPE
from ming.configuration_bailingmm import TALKER_TOKENS, BailingMMTalkerConfig
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.modeling_talker import BailingMMTalker
from ming.talker_processor import BailingMMTalkerProcessor
from ming.voices import Voice

ROOT = Path(__file__).resolve().parents[1]
NUM_CODES, CODEC_VOCAB = 16, 24
SPEAKERS = ("anna", "bert")


def talker_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and the talker's own tokens behind them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(TALKER_TOKENS))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<text_pad>")


def codec_bpe() -> CodecBPE:
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(NUM_CODES, (50,), generator=generator) for _ in range(20)]
    return CodecBPE.train(sequences, NUM_CODES, CODEC_VOCAB)


def voice(name: str, seed: int, num_codes: int = 10, num_frames: int = 17) -> Voice:
    generator = torch.Generator().manual_seed(seed)
    return Voice(
        name=name,
        prompt_text="A red circle.",
        prompt_codes=torch.randint(NUM_CODES, (num_codes,), generator=generator),
        prompt_mel=torch.randn(num_frames, 80, generator=generator) - 5,
        speaker_embedding=torch.randn(192, generator=generator),
    )


# A vocoder with one block of each kind, for tests that compile it many times.
SMALLEST_VOCODER = {
    **{"upsample_rates": [64], "upsample_kernel_sizes": [128]},
    **{"resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[3]]},
    **{"source_resblock_kernel_sizes": [7], "source_resblock_dilation_sizes": [[1]]},
}


def tiny_detokenizer(**vocoder: list) -> AudioDetokenizer:
    encoder = {"input_size": 16, "output_size": 16, "attention_heads": 2, "linear_units": 32, "num_blocks": 1}
    estimator = {"channels": [16, 16], "attention_head_dim": 8, "n_blocks": 1, "num_mid_blocks": 1, "num_heads": 2}
    config = AudioDetokenizerConfig(
        flow={"vocab_size": NUM_CODES, "input_size": 16, "encoder": encoder, "estimator": estimator},
        hift={"base_channels": 16, "f0_predictor": {"cond_channels": 16}, **vocoder},
    )
    torch.manual_seed(3)
    return AudioDetokenizer(config).eval()


def talker_config(hidden_size: int) -> BailingMMTalkerConfig:
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
    }
    return BailingMMTalkerConfig(
        llm_config=sizes,
        text_vocab_size=256 + len(TALKER_TOKENS),
        audio_vocab_size=CODEC_VOCAB,
        qa_model_hidden_size=hidden_size,
    )


def build_speaking_repository(directory: Path) -> Path:
    """Write all parts into a directory that `from_pretrained` reads."""
    model = BailingMMNativeForConditionalGeneration.from_pretrained(ROOT, dtype=torch.float32)
    config = talker_config(model.config.llm_config.hidden_size)
    torch.manual_seed(2)
    model.talker = BailingMMTalker(config)
    with torch.no_grad():  # ends pieces after a while, and depends on what it is given
        for parameter in model.talker.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.0) + (parameter.ndim == 1))
    model.config.talker_config = config
    model.save_pretrained(directory)
    for folder in ("voices", "talker", "codec_bpe"):  # Ming-Tiny's own travel with its weights
        shutil.rmtree(directory / folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"):
        (directory / file).write_text((ROOT / file).read_text(encoding="utf-8"), encoding="utf-8")
    BailingMMTalkerProcessor(
        talker_tokenizer(), codec_bpe(), {name: voice(name, seed) for seed, name in enumerate(SPEAKERS)}
    ).save_pretrained(directory)
    tiny_detokenizer().save_pretrained(directory / "audio_detokenizer")
    assert json.loads((directory / "config.json").read_text())["talker_config"]["audio_vocab_size"] == CODEC_VOCAB
    return directory
