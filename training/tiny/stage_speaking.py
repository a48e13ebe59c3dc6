"""Stage 2a of Ming-Tiny, second half: talker and audio detokenizer, their training and place in a repository.

python -m training.tiny.stage_listeners both    # speech tokenizer and speaker encoder
python -m training.tiny.stage_speaking hear     # encode the whole speech pool with them
python -m training.tiny.stage_speaking flow     # codes -> mel       (these two can
python -m training.tiny.stage_speaking vocoder  # mel -> waveform     run in parallel)
python -m training.tiny.stage_speaking voice    # train the speaker encoder on the output of the detokenizer
python -m training.tiny.stage_speaking talker   # text -> codes
python -m training.tiny.stage_speaking export   # write a repository that speaks to RUNS/model
python -m training.tiny.stage_speaking unpack   # copy the weights of THINKER into RUNS, to continue from them
"""

import argparse
import copy
import shutil
from dataclasses import replace
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from torch import nn
from transformers import PreTrainedTokenizerFast, set_seed

from audio_detokenizer.configuration_audio_detokenizer import AudioDetokenizerConfig
from audio_detokenizer.modeling_audio_detokenizer import AudioDetokenizer
from ming.codec_bpe import CodecBPE
from ming.components import AUDIO_DETOKENIZER
from ming.configuration_bailingmm import TALKER_TOKENS, BailingMMTalkerConfig
from ming.files import finish_saving, saving
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.modeling_talker import BailingMMTalker
from ming.processing_bailingmm import BailingMMProcessor
from ming.talker_processor import TOKENIZER_FOLDER, BailingMMTalkerProcessor
from ming.training.loop import fit
from ming.voices import SPEAKER_FILE, TOKENIZER_FILE, Voice, VoiceEncoder

from . import speech
from .listeners import FiniteScalarQuantizer, export_speaker_encoder
from .revoicing import RevoicedData, RevoicedTask, speak_again
from .speaking import FlowData, FlowTask, HeardPool, TalkerData, TalkerTask, VocoderData, VocoderTask
from .stage import SEED, frozen_thinker, stage_parser, start_stage
from .stage_listeners import load_task
from .tokenizer import byte_level_bpe, corpus

NUM_TEXT_TOKENS = 500  # of the talker's tokenizer, before its 12 special ones
CODEC_VOCAB = 512
QUICK_CODEC_VOCAB = 256  # few utterances do not repeat enough pairs of codes for more
NUM_BPE_SAMPLES = 4000  # utterances that the codec BPE is trained on
# Optimizer steps, batch size and learning rate.
STAGES = {
    "flow": (2000, 12, 1e-3),
    "vocoder": (2000, 16, 1e-3),
    "voice": (1000, 32, 2e-3),
    "talker": (6500, 16, 1.5e-3),
}
NUM_REVOICED = 700  # utterances that are resynthesised for the speaker encoder
QUICK = (2, 4)
TEMPERATURE = 0.3  # at 1, as released, the word error rate of a talker this small was 11.5 instead of 8.6 %
PRESET_TEXT = "please say what shape is at the top"
# Preset voices: espeak-ng's voice name -> name and description.
SPEAKERS = {
    "en-us+f3": ("iris", "a clear, higher voice"),
    "en+m3": ("oscar", "a deep voice"),
}


def tiny_detokenizer_config() -> AudioDetokenizerConfig:
    """About 4 M parameters."""
    encoder = {"input_size": 128, "output_size": 128, "attention_heads": 4, "linear_units": 256, "num_blocks": 3}
    estimator = {"channels": [128, 128], "attention_head_dim": 32, "n_blocks": 1, "num_mid_blocks": 3, "num_heads": 4}
    return AudioDetokenizerConfig(
        flow={
            "vocab_size": FiniteScalarQuantizer().codebook_size,
            "input_size": 128,
            "encoder": encoder,
            "estimator": estimator,
        },
        hift={
            "base_channels": 128,
            "f0_predictor": {"cond_channels": 96},
            "resblock_kernel_sizes": [3, 7],
            "resblock_dilation_sizes": [[1, 3], [1, 3]],
            "source_resblock_kernel_sizes": [7, 7],
            "source_resblock_dilation_sizes": [[1, 3], [1, 3]],
        },
        # This vocoder depends on 11 frames around its output, not on 18; the first steps of the flow are large.
        streaming={
            "first_chunk": 8,
            "first_chunk_steps": 4,
            "growth": 6.0,
            "look_ahead": 14,
            "vocoder_context": 11,
        },
    )


def tiny_talker_config(thinker_size: int, codec_vocab: int = CODEC_VOCAB) -> BailingMMTalkerConfig:
    """About 3 M parameters."""
    return BailingMMTalkerConfig(
        llm_config={
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
        },
        text_vocab_size=NUM_TEXT_TOKENS + len(TALKER_TOKENS),
        audio_vocab_size=codec_vocab,
        qa_model_hidden_size=thinker_size,
        sampling_temperature=TEMPERATURE,
    )


def talker_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the text of the world, then the special tokens of the talker."""
    tokenizer = byte_level_bpe(corpus(), NUM_TEXT_TOKENS)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in TALKER_TOKENS])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<text_pad>")


def new_detokenizer() -> AudioDetokenizer:
    """The detokenizer with the random weights that every run starts from."""
    set_seed(SEED)
    return AudioDetokenizer(tiny_detokenizer_config())


def new_talker(thinker_size: int, codec_vocab: int = CODEC_VOCAB) -> BailingMMTalker:
    """The talker with the random weights that every run starts from."""
    set_seed(SEED)
    return BailingMMTalker(tiny_talker_config(thinker_size, codec_vocab))


def hear(args: argparse.Namespace) -> HeardPool:
    """The speech pool encoded by the trained networks; kept in RUNS/heard.safetensors."""
    encoder = VoiceEncoder.from_pretrained(args.runs)
    return HeardPool.build(speech.SpeechPool(args.speech), encoder, args.runs / "heard.safetensors")


def talker_processor(args: argparse.Namespace, heard: HeardPool) -> BailingMMTalkerProcessor:
    """The talker's tokenizer and the codec BPE; made once and kept in RUNS/speech."""
    directory = args.runs / "speech"
    if not (directory / TOKENIZER_FOLDER).is_dir() and not finish_saving(directory):
        samples = (row.long() for row in heard.codes[:NUM_BPE_SAMPLES])
        vocab_size = QUICK_CODEC_VOCAB if args.quick else CODEC_VOCAB
        codec_bpe = CodecBPE.train(samples, FiniteScalarQuantizer().codebook_size, vocab_size)
        BailingMMTalkerProcessor(talker_tokenizer(), codec_bpe, {}).save_pretrained(directory)
    return BailingMMTalkerProcessor.from_pretrained(directory)


class Training(NamedTuple):
    """One training: the task, its data, and the module whose weights are saved."""

    task: nn.Module
    data: torch.utils.data.Dataset
    module: nn.Module


def talker_training(args: argparse.Namespace, heard: HeardPool, size: tuple[int, int, int]) -> Training:
    """Text -> codes; `size` is (steps, batch size, seed)."""
    thinker, processor = frozen_thinker(args.thinker), talker_processor(args, heard)
    talker = new_talker(thinker.config.llm_config.hidden_size, processor.codec_bpe.vocab_size)
    is_new = not (args.runs / "talker.safetensors").is_file()
    # A copy for the data: the processes that make batches cannot use a talker that is on the GPU.
    copied, chat_processor = copy.deepcopy(talker), BailingMMProcessor.from_pretrained(args.thinker)
    data = TalkerData(heard, copied, processor, chat_processor, *size, is_new)
    return Training(TalkerTask(talker, thinker), data, talker)


def voice_training(args: argparse.Namespace, heard: HeardPool, size: tuple[int, int, int]) -> Training:
    """The speaker encoder on the output of the detokenizer."""
    count = QUICK[1] if args.quick else NUM_REVOICED
    again = speak_again(heard, trained_detokenizer(args), args.runs / "revoiced.safetensors", count, SEED)
    data = RevoicedData(heard, again, *size)
    task = RevoicedTask(load_task("speaker_encoder", args.runs).encoder, data)
    return Training(task, data, task.encoder)


def flow_training(args: argparse.Namespace, heard: HeardPool, size: tuple[int, int, int]) -> Training:
    """Codes -> mel."""
    detokenizer = new_detokenizer()
    return Training(FlowTask(detokenizer), FlowData(heard, detokenizer.config, *size), detokenizer.flow)


def vocoder_training(args: argparse.Namespace, heard: HeardPool, size: tuple[int, int, int]) -> Training:
    """Mel -> waveform."""
    detokenizer = new_detokenizer()
    return Training(VocoderTask(detokenizer), VocoderData(heard.pool, detokenizer.config, *size), detokenizer.hift)


TRAININGS = {"flow": flow_training, "vocoder": vocoder_training, "voice": voice_training, "talker": talker_training}


def train(name: str, args: argparse.Namespace) -> None:
    """Train one of `STAGES`, or continue; write RUNS/NAME.safetensors."""
    steps, batch_size, learning_rate = STAGES[name]
    steps, batch_size = QUICK if args.quick else (args.steps or steps, args.batch_size or batch_size)
    task, data, module = TRAININGS[name](args, hear(args), (steps, batch_size, args.seed))
    weights = args.runs / f"{name}.safetensors"
    if weights.is_file():  # from an earlier training
        module.load_state_dict(load_file(weights))
    rate = args.learning_rate or learning_rate
    # AdamW for the speaker encoder, which is trained already.
    fit(task, data, args.runs / name, rate, SEED, adamw=name == "voice", bf16=args.bf16)
    save_file({key: value.detach().contiguous() for key, value in module.state_dict().items()}, weights)
    if name == "voice":
        export_speaker_encoder(module.eval(), args.runs / SPEAKER_FILE)


def trained_detokenizer(args: argparse.Namespace) -> AudioDetokenizer:
    """The detokenizer with the weights of its two stages."""
    detokenizer = new_detokenizer()
    detokenizer.flow.load_state_dict(load_file(args.runs / "flow.safetensors"))
    detokenizer.hift.load_state_dict(load_file(args.runs / "vocoder.safetensors"))
    return detokenizer.eval()


def export(args: argparse.Namespace) -> None:
    """Add all trained parts to the thinker: RUNS/model becomes a repository that speaks."""
    heard = hear(args)
    model = BailingMMNativeForConditionalGeneration.from_pretrained(args.thinker, dtype=torch.bfloat16)
    processor = talker_processor(args, heard)
    talker = new_talker(model.config.llm_config.hidden_size, processor.codec_bpe.vocab_size)
    talker.load_state_dict(load_file(args.runs / "talker.safetensors"))
    model.talker, model.config.talker_config = talker.to(torch.bfloat16), talker.config
    processor.voices = preset_voices(VoiceEncoder.from_pretrained(args.runs))
    with saving(args.runs / "model") as folder:
        model.save_pretrained(folder)
        BailingMMProcessor.from_pretrained(args.thinker).save_pretrained(folder)
        processor.save_pretrained(folder)
        for file in (SPEAKER_FILE, TOKENIZER_FILE):
            shutil.copy(args.runs / file, folder / TOKENIZER_FOLDER)
        trained_detokenizer(args).to(torch.bfloat16).save_pretrained(folder / AUDIO_DETOKENIZER)


def unpack(args: argparse.Namespace) -> None:
    """Copy the speech parts of a repository into RUNS; `hear`, `flow`, `vocoder` and `talker` continue from them."""
    model = BailingMMNativeForConditionalGeneration.from_pretrained(args.thinker, dtype=torch.float32)
    detokenizer = AudioDetokenizer.from_pretrained(args.thinker / AUDIO_DETOKENIZER)
    for name, part in {"talker": model.talker, "flow": detokenizer.flow, "vocoder": detokenizer.hift}.items():
        save_file(
            {key: value.contiguous() for key, value in part.state_dict().items()}, args.runs / f"{name}.safetensors"
        )
    processor = BailingMMTalkerProcessor.from_pretrained(args.thinker)
    processor.voices = {}
    processor.save_pretrained(args.runs / "speech")
    for file in (SPEAKER_FILE, TOKENIZER_FILE):
        shutil.copy(args.thinker / TOKENIZER_FOLDER / file, args.runs)


def preset_voices(encoder: VoiceEncoder) -> dict[str, Voice]:
    """The preset voices, from one sentence each (needs espeak-ng)."""
    voices = {}
    for voice_name, (name, description) in SPEAKERS.items():
        waveform = speech.speak(PRESET_TEXT, speech.Voice(voice_name))
        voice = encoder.encode((waveform, speech.SAMPLE_RATE), PRESET_TEXT, name)
        voices[name] = replace(voice, description=f"espeak-ng {voice_name}: {description}", licence="MIT")
    return voices


def main() -> None:
    """Run one step of the stage."""
    args = start_stage(stage_parser("stage_speaking", __doc__, ("hear", *STAGES, "export", "unpack")))
    {"hear": hear, "export": export, "unpack": unpack}.get(args.action, lambda args: train(args.action, args))(args)


if __name__ == "__main__":
    main()
