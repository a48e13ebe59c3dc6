"""Processor of the talker: its text tokenizer, the codec's byte-pair vocabulary, and the voices of a repository.

It turns text and a voice into the talker's prompts, and the talker's codec ids into speech codes.
"""

import os
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .argument_checks import shown
from .codec_bpe import CodecBPE
from .files import finish_saving, saving
from .speech_text import SpeechTextStream
from .talker_steps import TalkerPrompt
from .voices import Voice, VoiceEncoder, choose_voice, load_voices, save_voices

TOKENIZER_FOLDER = "talker"
# Folders of the codec's vocabulary: as this package saves it, and as released.
CODEC_FOLDERS = ("codec_bpe", "talker/s3_bpe")
VOICES_FOLDER = "voices"
FILES = (f"{TOKENIZER_FOLDER}/*", f"{TOKENIZER_FOLDER}/s3_bpe/*", "codec_bpe/*", f"{VOICES_FOLDER}/*")


class BailingMMTalkerProcessor:
    """Text and voices -> `TalkerPrompt`s; codec ids -> speech codes.

    No `ProcessorMixin`: the parts are no tokenizer and processors of one input, but three folders of a repository that
    the library's classes do not know.

    Args:
        tokenizer: the talker's own text tokenizer.
        codec_bpe: speech codes <-> codec ids.
        voices: preset speakers by name; the first one speaks by default. Each is saved under its key.
        directory: the folder of the networks that clone voices (`talker/*.onnx`); None where there is none.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        codec_bpe: CodecBPE,
        voices: dict[str, Voice],
        directory: str | os.PathLike | None = None,
    ):
        self.tokenizer, self.codec_bpe, self.voices = tokenizer, codec_bpe, voices
        self.directory = directory
        self._voice_encoder: VoiceEncoder | None = None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        revision: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> "BailingMMTalkerProcessor":
        """Read the folders `talker/`, `codec_bpe/` (or `talker/s3_bpe/`) and `voices/` of a directory or Hub id.

        Args:
            pretrained_model_name_or_path: a directory or a Hub id.
            revision, cache_dir, token, local_files_only: as in the library's `from_pretrained`, for a Hub id.

        Raises:
            ValueError: a folder is missing; the message names it.
        """
        source = str(pretrained_model_name_or_path)
        if not os.path.isdir(source):
            source = snapshot_download(
                source,
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                local_files_only=local_files_only,
                allow_patterns=list(FILES),
            )
        finish_saving(source)
        root = Path(source)
        codec_folder = next((root / name for name in CODEC_FOLDERS if (root / name).is_dir()), None)
        if not (root / TOKENIZER_FOLDER).is_dir() or codec_folder is None:
            raise ValueError(
                f"{source} has no speech files: expected the folders {TOKENIZER_FOLDER}/ and one of "
                f"{', '.join(CODEC_FOLDERS)}; take a repository with speech, or load with load_talker=False"
            )
        voices = load_voices(root / VOICES_FOLDER) if (root / VOICES_FOLDER).is_dir() else {}
        # Without asking: a tokenizer is data here, whatever its configuration names.
        tokenizer = AutoTokenizer.from_pretrained(root / TOKENIZER_FOLDER, trust_remote_code=False)
        return cls(tokenizer, CodecBPE.from_pretrained(codec_folder), voices, root / TOKENIZER_FOLDER)

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write the three folders; `from_pretrained` reads them."""
        with saving(save_directory) as root:
            self.tokenizer.save_pretrained(root / TOKENIZER_FOLDER)
            self.codec_bpe.save_pretrained(root / CODEC_FOLDERS[0])
            save_voices(self.voices, root / VOICES_FOLDER)

    def load_voice_encoder(self) -> VoiceEncoder:
        """The networks that make a voice from a recording; the first call reads them from the repository.

        Raises:
            ValueError: this processor was not read from a directory.
            FileNotFoundError: the repository has no such networks.
            ImportError: `onnxruntime` is not installed.
        """
        if self._voice_encoder is None:
            if self.directory is None:
                raise ValueError(
                    "this processor was not read from a directory, so it cannot clone voices; pass speaker="
                )
            self._voice_encoder = VoiceEncoder.from_pretrained(self.directory)
        return self._voice_encoder

    def voice(self, speaker: str | Voice | None = None, prompt_audio=None, prompt_text: str | None = None) -> Voice:
        """The voice to speak with; a recording is encoded, for which the first one loads the networks.

        Args:
            speaker: name of a preset speaker, or a `Voice`; None takes the first preset one.
            prompt_audio: a recording (anything `load_audio` takes) of at most 30 s, whose voice is cloned.
            prompt_text: the words of the recording.

        Raises:
            ValueError: unknown speaker, both a speaker and a recording, a recording without its text, or no voice.
        """
        if prompt_audio is None and prompt_text is not None:
            raise ValueError("prompt_text was given without prompt_audio; pass the recording of these words")
        if prompt_audio is not None:
            if speaker is not None:
                raise ValueError(f"pass either speaker={shown(speaker)} or prompt_audio, not both")
            if not prompt_text:
                raise ValueError("prompt_audio needs prompt_text, the words that are spoken in it")
            return self.load_voice_encoder().encode(prompt_audio, prompt_text)
        if isinstance(speaker, Voice):
            return speaker
        if speaker is None:
            if not self.voices:
                raise ValueError(f"the repository has no {VOICES_FOLDER}/; pass prompt_audio= and prompt_text=")
            return next(iter(self.voices.values()))
        return choose_voice(self.voices, speaker)

    def pieces(self, text: str, one_sentence: bool = False, clause_units: int | None = None) -> list[str]:
        """A reply as normalised pieces, which are spoken one by one; [] where there is nothing to say.

        The pieces are those of a stream, so that a reply sounds the same whole and streamed. With `one_sentence`, none
        holds more than one sentence; `clause_units` is that of `SpeechTextStream`.
        """
        cutter = SpeechTextStream(one_sentence=one_sentence, clause_units=clause_units)
        return [*cutter.push(text), *cutter.finish()]

    def prompt(self, piece: str, voice: Voice, thinker_states: torch.Tensor | None = None) -> TalkerPrompt:
        """The talker's prompt for a normalised piece; `thinker_states` are the thinker's hidden states [n, D]."""
        prompt_text, text = (
            self.tokenizer(words, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            for words in (voice.prompt_text, piece)
        )
        # A cloned prompt may hold codes that are not in the codec's vocabulary; they are left out, as released.
        prompt_ids = self.codec_bpe.encode(voice.prompt_codes, unknown="drop")
        return TalkerPrompt(
            torch.tensor([*prompt_text, *text], dtype=torch.long),
            torch.tensor(prompt_ids, dtype=torch.long),
            voice.speaker_embedding,
            thinker_states,
            len(prompt_text),
        )

    def codes(self, codec_ids: torch.Tensor) -> torch.Tensor:
        """Codec ids [n] -> speech codes int64 [T], 50 a second."""
        return torch.tensor(self.codec_bpe.decode(codec_ids.tolist()), dtype=torch.long)


__all__ = ["BailingMMTalkerProcessor"]
