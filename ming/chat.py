"""A conversation that is read once: every turn starts from the keys and values of the turns before it.

    chat = model.chat(processor)
    chat.say([{"type": "image", "image": "demo/picture.jpg"}, {"type": "text", "text": "What shape is on the left?"}])
    chat.say("And what colour?")

Answers are those of `generate` on the whole conversation; only what is new goes through encoders and decoder.
"""

from typing import Any

import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import Cache

from .argument_checks import Kind, raise_if_no, raise_if_no_settings, shown
from .compiled import longest, max_length, moved, settings_of
from .finite import naming_layers, raise_if_not_finite
from .generation_arguments import end_token_ids, raise_if_custom, raise_if_several, raise_if_too_long

PROCESSOR = Kind(
    "the processor of the model, AutoProcessor.from_pretrained(...)",
    lambda value: all(hasattr(value, name) for name in ("apply_chat_template", "decode", "tokenizer")),
)
SYSTEM = Kind("a text, or a list of content items", lambda value: value is None or isinstance(value, (str, list)))

SEVERAL = (
    "a chat goes on from one reply, the only one that it keeps; use model.generate on the whole conversation "
    "(chat.messages) for several"
)


def raise_if_unfit(model: Any, options: dict[str, Any]) -> None:
    """Refuse options of `generate` that a `Chat` cannot take, also those that a configuration asks for."""
    mode = options.get("generation_mode")
    if mode is not None and not (isinstance(mode, str) and mode == "text"):
        raise ValueError(
            f"generation_mode={shown(mode)}: a chat answers in text; use model.generate for speech and images"
        )
    settings = settings_of(model, options)
    raise_if_no_settings(settings)
    if options.get("image_gen"):
        raise ValueError("image_gen=True: a chat answers in text; use model.generate for images")
    own = ("input_ids", "inputs_embeds", "mm_token_type_ids", "past_key_values", "return_dict_in_generate")
    if given := [name for name in own if name in options]:
        raise ValueError(f"{', '.join(given)}: a chat sets this itself; leave it out")
    raise_if_several(settings, SEVERAL)
    raise_if_custom(options, "a chat goes on from the cache of a reply; use model.generate")
    if not settings.get("use_cache", True):
        raise ValueError("use_cache=False: a chat reads every turn once, for which it needs its cache; leave it out")


class Chat:
    """One conversation with a model in text mode.

    Args:
        model: a `BailingMMNativeForConditionalGeneration`; processor: its processor.
        system: what stands above the first turn.
        options: of `generate` in every turn, such as `max_new_tokens`, and `use_whisper_encoder`, which hears
            recordings with the other encoder; those of a turn go before them. Beams and several replies are for
            `generate` on the whole conversation.

    Raises:
        ValueError: another `generation_mode`, or an option that this class sets itself or that cannot be used.
        TypeError: an argument of another kind than its name says.
    """

    def __init__(self, model, processor, system: str | None = None, **options):
        raise_if_no("processor", processor, PROCESSOR)
        raise_if_no("system", system, SYSTEM)
        self.model, self.processor, self.options = model, processor, options
        self.system = system
        raise_if_unfit(model, options)
        self.reset()

    def reset(self) -> None:
        """Forget all turns."""
        self.messages: list[dict[str, Any]] = []
        if self.system is not None:
            self.messages.append({"role": "system", "content": self.system})
        self.cache: Cache = DynamicCache(config=self.model.config.get_text_config())
        # All tokens so far, and which of them are images or audio; the last one may not be in the cache yet.
        self.ids = torch.zeros(1, 0, dtype=torch.long)
        self.token_types = torch.zeros(1, 0, dtype=torch.long)

    def say(self, content: str | list[dict[str, Any]], use_whisper_encoder: bool | None = None, **options) -> str:
        """A turn: what the user says, as a string or content items -> the reply.

        A turn that fails or is interrupted leaves the conversation as it was.

        Raises:
            ValueError: the conversation would not fit into the model's context, content that cannot be read, or
                options as in the constructor.
        """
        chosen = {} if use_whisper_encoder is None else {"use_whisper_encoder": use_whisper_encoder}
        options = self.options | options | chosen
        raise_if_unfit(self.model, options)
        message = {"role": "user", "content": content}
        seen = int(self.cache.get_seq_length())
        try:
            sequence, num_prompt = self._generate(message, bool(options.pop("use_whisper_encoder", False)), options)
        except BaseException:
            self._forget_tokens_after(seen)
            raise
        reply = self.processor.decode(sequence[0, num_prompt:], skip_special_tokens=True)
        self.messages = [*self.messages, message, {"role": "assistant", "content": reply}]
        return reply

    def _generate(self, message: dict, use_whisper_encoder: bool, options: dict) -> tuple[torch.Tensor, int]:
        """Ids [1, L] of the conversation with the reply, and how many of them are the prompt."""
        model, device = self.model, self.model.device
        opening = self.messages if not self.ids.shape[1] else []  # a system message is part of the first turn
        inputs = self.processor.apply_chat_template(
            [*opening, message],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            use_whisper_encoder=use_whisper_encoder,
        ).to(device, model.dtype)
        new_ids = inputs.pop("input_ids")
        new_types = inputs.pop("mm_token_type_ids", torch.zeros_like(new_ids))
        ids = torch.cat([self.ids.to(device), new_ids], dim=1)
        context = model.config.llm_config.max_position_embeddings
        raise_if_too_long(ids.shape[1], context, "the conversation", room=1)
        token_types = torch.cat([self.token_types.to(device), new_types], dim=1)
        media = {name: inputs[name] for name in model.media_inputs if name in inputs}
        with torch.no_grad(), naming_layers({"": model}, lambda: model.embed(new_ids, new_types, **media)):
            embeds, _ = model.embed(new_ids, new_types, **media)
            raise_if_not_finite("the embeddings of the turn are", embeds)
            old = model.get_input_embeddings()(self.ids.to(device))  # read only where the cache ends
        self._make_room(ids.shape[1], options)
        output = model.generate(
            input_ids=ids,
            inputs_embeds=torch.cat([old, embeds.to(old.dtype)], dim=1),
            mm_token_type_ids=token_types,
            past_key_values=self.cache,
            return_dict_in_generate=True,
            **options,
        )
        sequence = output.sequences
        kept = sequence[0].tolist()
        if kept[-1] in end_token_ids(model):
            kept = kept[:-1]  # the next turn follows the reply itself
        self.ids = torch.tensor([kept])
        num_new = len(kept) - token_types.shape[1]
        self.token_types = torch.nn.functional.pad(token_types, (0, num_new)).cpu()
        return sequence, ids.shape[1]

    def _forget_tokens_after(self, seen: int) -> None:
        """Take back what a turn added to the cache."""
        if isinstance(self.cache, StaticCache):
            self.cache = moved(self.cache, DynamicCache(config=self.model.config.get_text_config()), seen)
            return
        for layer in self.cache.layers:  # each by itself: the pass may have ended between two of them
            if (added := layer.get_seq_length() - seen) > 0:
                layer.crop(-added)

    def _make_room(self, num_tokens: int, options: dict) -> None:
        """Choose the cache of a turn: a static one with room for the reply if its steps are compiled."""
        asked, config = options.get("compile"), self.model.config.get_text_config()
        is_static, seen = isinstance(self.cache, StaticCache), int(self.cache.get_seq_length())
        if not (self.model.compile_decoding if asked is None else asked):
            self.cache = moved(self.cache, DynamicCache(config=config), seen) if is_static else self.cache
            return
        room = longest(settings_of(self.model, options), num_tokens)
        length = self.model.decoding.padded_length(room, self.model.device)
        if not is_static or max_length(self.cache) < length:
            self.cache = moved(self.cache, StaticCache(config, max_cache_len=length), seen)


__all__ = ["Chat"]
