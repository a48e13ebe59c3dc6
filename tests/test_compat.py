"""What `ming/compat.py` uses of transformers beyond its interface: each test names what breaks when it goes."""

import os
import subprocess
import sys
import threading
from inspect import signature
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from thinker_helpers import tiny_config, tiny_model
from torch import nn
from transformers import CompileConfig, GenerationConfig, PreTrainedModel, Qwen2Config, StaticCache, trainer_utils
from transformers.distributed import DistributedConfig
from transformers.models.auto import modeling_auto

from ming import compat
from ming.components import TRAINER_CHECKPOINT
from ming.configuration_bailingmm import BailingMMConfig, BailingMMTalkerConfig
from ming.modeling_bailing_moe import BailingMoeExperts
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration as Model
from ming.modeling_encoders import BailingMMVisionTransformer

ROOT = Path(__file__).parents[1]


def test_table_of_served_architectures():
    """Without it `transformers serve` does not know how to load and to feed the model."""
    name = modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES["bailingmm"]
    assert name == Model.__name__


KERNEL_WARNING = """
import logging, sys

class Patch:  # a CPU with AVX-512 BF16, without the package `kernels`
    def find_spec(self, name, path=None, target=None):
        if name == "bitsandbytes.backends.cpu.ops":
            sys.modules["bitsandbytes.functional"].has_avx512bf16 = lambda: True
        return None

sys.modules["kernels"] = None
sys.meta_path.insert(0, Patch())
{imports}
print(len(logging.getLogger("bitsandbytes.backends.cpu.ops").filters))
"""


@pytest.mark.parametrize(
    ("imports", "warns"), [("import diffusers.models.autoencoders", True), ("import ming", False)]
)
def test_warning_about_a_kernel_that_nobody_asked_for(imports, warns):
    """Without the filter every command says on such CPUs that it failed to load something; afterwards it is gone."""
    code = KERNEL_WARNING.replace("{imports}", imports)
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ("gemm_4bit_forward" in child.stderr) == warns, child.stderr
    assert child.stdout == "0\n"


def test_names_of_a_trainers_checkpoints():
    """Without it a model that a trainer saves does not find its parts beside its checkpoints."""
    assert TRAINER_CHECKPOINT.fullmatch(f"{trainer_utils.PREFIX_CHECKPOINT_DIR}-12")


def test_registration_of_remote_classes():
    """With it the library flattens the code of a saved model and writes an auto_map without the folder."""
    for cls in (Model, BailingMMConfig):
        cls.register_for_auto_class("AutoModel")
        assert cls._auto_class is None
    assert PreTrainedModel._auto_class is None


def test_choice_of_experts_for_parts_without_experts():
    """Without it `experts_implementation=` is refused by the whole model, since the encoders have no experts."""
    model = Model._from_config(tiny_config(), experts_implementation="eager")
    assert model.config.llm_config._experts_implementation == "eager"
    assert Model._can_set_experts_implementation() and BailingMMVisionTransformer._can_set_experts_implementation()


def test_experts_of_the_talkers_configuration():
    """Without it the talker's Qwen2 is asked for an experts implementation and refuses it."""
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1}
    config = BailingMMTalkerConfig(llm_config=sizes, text_vocab_size=40, audio_vocab_size=8)
    config._experts_implementation = "grouped_mm"
    assert config._experts_implementation is None
    assert isinstance(config.llm_config, Qwen2Config)


def test_switch_of_compilation_on_all_devices():
    """Without it `compile=True` would do nothing on a CPU."""
    model, config = tiny_model(), compat.compiles_on_all_devices(CompileConfig())
    cache = StaticCache(model.config.llm_config, max_cache_len=8)
    settings = GenerationConfig(compile_config=config)
    assert model._valid_auto_compile_criteria({"past_key_values": cache}, settings)
    settings.compile_config = CompileConfig()
    assert not model._valid_auto_compile_criteria({"past_key_values": cache}, settings)


def test_mark_of_expert_parallelism():
    """Without it the shortcut for one token would read experts that another process holds.

    Releases before 5.18 have no mark, and refuse the plan of expert parallelism.
    """
    experts = BailingMoeExperts(tiny_config().llm_config)
    assert hasattr(experts, "_is_expert_parallel") or "ep_size" not in signature(DistributedConfig).parameters
    assert not compat.is_split(experts, experts.gate_up_proj)
    experts._is_expert_parallel = True
    assert compat.is_split(experts, experts.gate_up_proj)


def test_hooks_of_offloaded_weights():
    """Without them inputs of an offloaded model would be moved to the device "meta"."""
    model = nn.Sequential(nn.Linear(2, 2))
    cpu_offload(model, torch.device("cpu"))
    assert next(model.parameters()).device.type == "meta"
    assert compat.execution_device(model, torch.device("meta")) == torch.device("cpu")


def test_switch_of_loading_threads(monkeypatch, tmp_path):
    """Without it loading holds up to half a checkpoint on top of the model."""
    from transformers import core_model_loading

    tiny_model().save_pretrained(tmp_path)
    asked = {}
    monkeypatch.delenv(compat.ASYNC_SWITCH, raising=False)
    monkeypatch.setattr(
        core_model_loading, "is_env_variable_true", lambda name: asked.setdefault(name, os.environ.get(name))
    )
    Model.from_pretrained(tmp_path)
    assert asked[compat.ASYNC_SWITCH] == "1"


def test_loads_side_by_side_share_the_switch(monkeypatch):
    """The setting of the environment goes with the last load, and a user's own is left alone."""
    monkeypatch.delenv(compat.ASYNC_SWITCH, raising=False)
    inside, leave = threading.Event(), threading.Event()

    def load():
        with compat.sequential_loading():
            inside.set()
            leave.wait(5)

    thread = threading.Thread(target=load)
    with compat.sequential_loading():
        thread.start()
        inside.wait(5)
    assert os.environ[compat.ASYNC_SWITCH] == "1"
    leave.set()
    thread.join()
    assert compat.ASYNC_SWITCH not in os.environ
    monkeypatch.setenv(compat.ASYNC_SWITCH, "0")
    with compat.sequential_loading():
        assert os.environ[compat.ASYNC_SWITCH] == "0"
    assert os.environ[compat.ASYNC_SWITCH] == "0"


@pytest.mark.parametrize("name", ["_no_split_modules", "_supports_sdpa", "supports_gradient_checkpointing"])
def test_flags_that_models_declare(name):
    """Documented for authors of models, with an underscore: a flag that is gone would be ignored silently."""
    assert hasattr(PreTrainedModel, name)
