"""Sizes of Ming-Tiny: the released architecture with about a two-thousandth of its parameters."""

from ming.configuration_bailingmm import BailingMMConfig

FIRST_SPECIAL_TOKEN = 736  # after the byte-level BPE tokens; then come the 288 released special tokens
END_OF_TEXT = FIRST_SPECIAL_TOKEN + 1
IMAGE_PATCH = FIRST_SPECIAL_TOKEN + 266
VOCAB_SIZE = FIRST_SPECIAL_TOKEN + 288


def tiny_config() -> BailingMMConfig:
    """The configuration of the bundled checkpoint."""
    return BailingMMConfig(
        architectures=["BailingMMNativeForConditionalGeneration"],
        llm_config={
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "moe_intermediate_size": 96,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "num_shared_experts": 2,
            "max_position_embeddings": 4096,
            "initializer_range": 0.03,
            "image_patch_token": IMAGE_PATCH,
            "pad_token_id": END_OF_TEXT,
            "eos_token_id": END_OF_TEXT,
            "router_aux_loss_coef": 0.01,
            "router_z_loss_coef": 0.001,
        },
        vision_config={
            "depth": 4,
            "hidden_size": 128,
            "num_heads": 4,
            "intermediate_size": 320,
            "out_hidden_size": 192,
            "fullatt_block_indexes": [1, 2, 3],
        },
        audio_config={
            "audio_encoder_config_sanm": {
                "output_size": 128,
                "attention_heads": 4,
                "linear_units": 384,
                "num_blocks": 6,
                "dropout_rate": 0.0,
                "attention_dropout_rate": 0.0,
            }
        },
        whisper_config={
            "whisper_encoder_config": {"n_ctx": 1500, "n_head": 4, "n_layer": 4, "n_mels": 128, "n_state": 128}
        },
    )
