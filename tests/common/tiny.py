"""Tiny models and their inputs, as the library's mixins ask for them."""

import torch
from thinker_helpers import Chat, batch, tiny_config
from transformers import AutoModel
from transformers.models.auto import modeling_auto

from ming.configuration_bailingmm import BailingMMConfig, BailingMoeConfig
from ming.modeling_bailing_moe import BailingMoeForCausalLM, BailingMoeModel
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration

# By the names in these tables the mixins know what a class is and whether it takes labels.
modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["bailingmm"] = (
    BailingMMNativeForConditionalGeneration.__name__
)
modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["bailing_moe"] = BailingMoeForCausalLM.__name__
modeling_auto.MODEL_MAPPING_NAMES["bailing_moe"] = BailingMoeModel.__name__
AutoModel.register(BailingMoeConfig, BailingMoeModel)


class OmniTester:
    """Two chats with an image, maybe a video, and a recording each.

    Args:
        encoder: "sanm" or "whisper".
        video: whether there is a video.
        talker: whether the model has a talker.
    """

    is_training = True
    batch_size = 2

    def __init__(self, encoder: str, video: bool, talker: bool):
        self.encoder, self.video, self.talker = encoder, video, talker
        config, inputs = self.prepare_config_and_inputs_for_common()
        self.seq_length = self.encoder_seq_length = inputs["input_ids"].shape[1]
        text = config.llm_config
        self.num_hidden_layers, self.hidden_size = text.num_hidden_layers, text.hidden_size
        self.num_attention_heads, self.vocab_size = text.num_attention_heads, text.vocab_size

    def get_config(self) -> BailingMMConfig:
        # The mixin takes `out_hidden_size` for the width of the encoder's states.
        return tiny_config(vision_config={"out_hidden_size": 32}, **({} if self.talker else {"talker_config": None}))

    def prepare_config_and_inputs_for_common(self) -> tuple[BailingMMConfig, dict[str, torch.Tensor]]:
        chats = []
        for seed in range(self.batch_size):
            chat = Chat(seed, self.encoder).text(3).image(1, 4, 4).text(2)
            if self.video:
                chat.video(2, 4, 4)
            chats.append(chat.audio(9).text(3))
        return self.get_config(), batch(chats)


class DecoderTester:
    """Two rows of the decoder's inputs with tokens of all four kinds."""

    is_training = True
    batch_size, seq_length = 2, 9
    causal_lm_class, base_model_class = BailingMoeForCausalLM, BailingMoeModel

    def __init__(self):
        config = self.get_config()
        self.num_hidden_layers, self.hidden_size = config.num_hidden_layers, config.hidden_size
        self.num_attention_heads, self.vocab_size = config.num_attention_heads, config.vocab_size

    def get_config(self) -> BailingMoeConfig:
        config = tiny_config().llm_config
        config.dtype, config.max_position_embeddings = torch.float32, 64
        return config

    def prepare_config_and_inputs_for_common(self) -> tuple[BailingMoeConfig, dict[str, torch.Tensor]]:
        shape = (self.batch_size, self.seq_length)
        ids = torch.randint(30, 280, shape, generator=torch.Generator().manual_seed(0))
        types = (torch.arange(self.seq_length) // 2 % 4).expand(shape)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types.clone()}
        return self.get_config(), inputs
