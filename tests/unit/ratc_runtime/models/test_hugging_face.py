"""Models of `transformers` by the name of their class, or of their config's."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from ratc_runtime.errors import RuntimeFinding  # noqa: E402
from ratc_runtime.models import hugging_face  # noqa: E402
from ratc_runtime.models.build import build_model  # noqa: E402
from ratc_runtime.models.import_callable import resolve  # noqa: E402
from ratc_runtime.trace import failure  # noqa: E402

from tests.helpers.lockfile import lock_with  # noqa: E402

GPT2 = {"vocab_size": 8, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
BERT = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
LLAMA = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
T5 = {"vocab_size": 8, "d_model": 8, "d_ff": 8, "d_kv": 4, "num_layers": 1, "num_heads": 1, "decoder_start_token_id": 0}
WHISPER = {
    "vocab_size": 8,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 1,
    "decoder_attention_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
VISION = {**LLAMA, "image_size": 32}
del VISION["vocab_size"]
OWN = """\
import transformers

class Narrow(transformers.GPT2LMHeadModel):
    def __init__(self, width: int) -> None:
        super().__init__(transformers.GPT2Config(n_embd=width, n_layer=1, n_head=1))
"""


def built(tmp_path, name, args, **more):
    model = {"name": name, "multi_scale": False, "args": args, "attention_memory": "full", **more}
    return build_model(lock_with(tmp_path, model=model))


@pytest.mark.parametrize(
    ("name", "args", "model"),
    [
        ("GPT2Config", GPT2, transformers.GPT2LMHeadModel),
        ("GPT2LMHeadModel", GPT2, transformers.GPT2LMHeadModel),
        ("GPT2ForSequenceClassification", GPT2, transformers.GPT2ForSequenceClassification),
        ("BertConfig", BERT, transformers.BertForPreTraining),
        ("LlamaConfig", {**LLAMA, "rope_theta": 1e5}, transformers.LlamaForCausalLM),
        ("T5Config", T5, transformers.T5ForConditionalGeneration),
        ("WhisperConfig", WHISPER, transformers.WhisperForConditionalGeneration),
        ("ResNetConfig", {"depths": [1], "hidden_sizes": [8]}, transformers.ResNetModel),
    ],
)
def test_class_or_its_config_names_the_model(tmp_path, name, args, model):
    found = built(tmp_path, f"transformers:{name}", args)
    assert type(found) is model
    kept = {key: value for key, value in args.items() if key != "rope_theta"}  # the config turns it into another one
    assert {key: getattr(found.config, key) for key in kept} == kept
    assert list(found.state_dict()) == list(model(found.config).state_dict())


def test_mapping_reaches_the_model_as_keyword_arguments(tmp_path):
    ids = torch.tensor([[1, 2, 3]])
    model = built(tmp_path, "transformers:GPT2Config", GPT2, output="logits").eval()
    hidden = torch.tensor([[1, 1, 0]])
    assert model({"input_ids": ids, "attention_mask": hidden}).equal(model(ids, attention_mask=hidden))
    assert model(ids).shape == (1, 3, 8)


MINE = """
import torch
import transformers
from torch import nn

def pretrained():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=8))

class Two(nn.Module):
    def forward(self, left, right, scale=1):
        return scale * left - right

class Whole(nn.Module):
    def forward(self, batch):
        return batch["left"]

class Named(nn.Module):
    def forward(self, *, left):
        return left

class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = pretrained()

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)

class Alone(transformers.GPT2PreTrainedModel):
    def __init__(self):
        super().__init__(transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=8))

    def forward(self, batch):
        return batch["batch"]

class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = pretrained()

    def forward(self, batch, attention_mask=None, **more):
        return self.inner(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])

def compiled():
    return torch.compile(Two(), backend="eager")

def traced():
    return torch.jit.trace(nn.Linear(4, 1), torch.zeros(2, 4))
"""


def test_mapping_reaches_models_of_own_functions_as_they_take_it(tmp_path, monkeypatch):
    (tmp_path / "mapped_models.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    ids = torch.tensor([[1, 2, 3]])
    model = built(tmp_path / "a", "mapped_models:pretrained", {}, output="logits").eval()
    assert model({"input_ids": ids}).equal(model(ids))
    two = built(tmp_path / "b", "mapped_models:Two", {})
    assert two({"left": 5, "right": 2, "scale": 2}) == 8
    assert two(5, 2) == 3
    assert built(tmp_path / "c", "mapped_models:Whole", {})({"left": 5, "right": 2}) == 5
    assert built(tmp_path / "d", "mapped_models:Named", {})({"left": 5}) == 5
    wrapped = built(tmp_path / "e", "mapped_models:Wrapped", {}, output="logits").eval()
    assert wrapped({"input_ids": ids}).equal(wrapped(ids))
    assert built(tmp_path / "f", "mapped_models:Alone", {})({"batch": 5, "right": 2}) == 5
    around = built(tmp_path / "i", "mapped_models:Around", {}, output="logits").eval()
    assert around({"input_ids": ids, "attention_mask": torch.ones_like(ids)}).shape == (1, 3, 8)
    assert built(tmp_path / "g", "mapped_models:compiled", {})({"left": 5, "right": 2}) == 3
    assert built(tmp_path / "h", "mapped_models:traced", {})(torch.zeros(2, 4)).shape == (2, 1)


def test_keys_and_values_of_earlier_tokens_are_kept_only_if_asked_for(tmp_path):
    ids = torch.tensor([[1, 2, 3]])
    assert "past_key_values" not in built(tmp_path / "a", "transformers:GPT2Config", GPT2)(ids)
    assert "past_key_values" in built(tmp_path / "b", "transformers:GPT2Config", {**GPT2, "use_cache": True})(ids)


@pytest.mark.parametrize(
    ("key", "help"),
    [
        ("n_layers", "did you mean `n_layer`?"),
        ("zzz", "GPT2Config"),
        ("_attn_implementation_internal", "GPT2Config"),
        ("auto_map", "GPT2Config"),
        ("to_dict", ""),
    ],
)
def test_value_that_the_config_has_not_is_refused(tmp_path, key, help):
    with pytest.raises(RuntimeFinding, match=f"GPT2Config has no `{key}`") as found:
        built(tmp_path, "transformers:GPT2Config", {**GPT2, key: 2})
    assert found.value.code == "R237"
    assert help in str(found.value.help)


@pytest.mark.parametrize(
    ("config", "args", "named"),
    [
        ("DetrConfig", {"attn_implementation": "somebody/kernels"}, "attn_implementation"),
        ("DetrConfig", {"use_pretrained_backbone": True}, "use_pretrained_backbone"),
        ("DetrConfig", {"backbone_config": {"model_type": "timm_backbone", "backbone": "hf-hub:a/b"}}, "backbone"),
        ("CLIPConfig", {"text_config": {**LLAMA, "attn_implementation": "somebody/kernels"}}, "attn_implementation"),
        ("TimmWrapperConfig", {"architecture": "hf-hub:a/b"}, "architecture"),
        ("TimmWrapperConfig", {"architecture": "local-dir:a"}, "architecture"),
        ("TimmWrapperConfig", {"architecture": "resnet18", "model_args": {"pretrained": True}}, "pretrained"),
        ("TimmWrapperConfig", {"architecture": "resnet18", "model_args": {"checkpoint_path": "a"}}, "checkpoint_path"),
        ("TimmWrapperConfig", {"architecture": "resnet18", "model_args": {"layers": ["hf-hub:a/b"]}}, "layers"),
    ],
)
def test_value_that_loads_code_or_weights_is_refused_at_any_depth(tmp_path, config, args, named):
    with pytest.raises(RuntimeFinding, match=f"`{named}` is "):
        built(tmp_path, f"transformers:{config}", args)


def test_model_that_asks_the_hub_for_a_file_is_refused(tmp_path, monkeypatch):
    def make(config):
        from huggingface_hub import hf_hub_download

        hf_hub_download("a/b", "config.json", cache_dir=tmp_path)

    monkeypatch.setattr(transformers.AutoModelForPreTraining, "from_config", make)
    with pytest.raises(RuntimeFinding, match="nothing is loaded here"):
        built(tmp_path, "transformers:GPT2Config", GPT2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ({"hidden_sizes": 8}, "text_config: CLIPTextConfig has no `hidden_sizes`"),
        ({"_attn_implementation": "sdpa"}, "text_config: CLIPTextConfig has no `_attn_implementation`"),
    ],
)
def test_value_that_a_config_in_a_config_has_not_is_refused(tmp_path, text, said):
    with pytest.raises(RuntimeFinding, match=said):
        built(tmp_path, "transformers:CLIPConfig", {"text_config": text})


@pytest.mark.parametrize(
    ("config", "values"),
    [
        ("EsmConfig", {"position_embedding_type": "rotary", "rope_theta": 1e5, "pad_token_id": 0}),
        ("Gemma4TextConfig", {"head_dim": 8}),
    ],
)
def test_a_parameter_of_the_config_is_accepted_though_its_instance_does_not_tell_it(config, values):
    if not hasattr(transformers, config):
        pytest.skip(f"this transformers has no {config}")
    hugging_face._check("model", getattr(transformers, config), values)
    with pytest.raises(RuntimeFinding, match="has no `head_dims`"):
        hugging_face._check("model", getattr(transformers, config), {"head_dims": 8})


def test_the_reason_of_a_failed_trace_is_the_wrong_value(tmp_path):
    with pytest.raises(RuntimeFinding) as found:
        built(tmp_path, "transformers:GPT2Config", {**GPT2, "n_layers": 2})
    told = failure.explain(found.value, "building the model")
    assert (told.code, told.key, told.help) == ("R237", "model.args", "did you mean `n_layer`?")


def test_config_in_a_config_may_be_of_a_named_architecture(tmp_path):
    values = {
        "text_config": {**LLAMA, "model_type": "llama"},
        "vision_config": {**VISION, "model_type": "clip_vision_model"},
    }
    found = built(tmp_path / "a", "transformers:LlavaConfig", values)
    assert type(found) is transformers.LlavaForConditionalGeneration
    assert found.config.text_config.hidden_size == 8
    assert found.config.text_config.use_cache is False
    values["text_config"]["model_type"] = "lama"
    with pytest.raises(RuntimeFinding, match="text_config: the `model_type` is 'lama'"):
        built(tmp_path / "b", "transformers:LlavaConfig", values)


def test_value_of_a_wrong_type_is_explained_in_one_line(tmp_path):
    with pytest.raises(RuntimeFinding, match="expected int, got str") as found:
        built(tmp_path, "transformers:GPT2Config", {**GPT2, "n_layer": "two"})
    assert "\n" not in found.value.note


def test_attention_may_be_chosen(tmp_path):
    model = built(tmp_path, "transformers:GPT2Config", {**GPT2, "attn_implementation": "eager"})
    assert model.config._attn_implementation == "eager"


def test_class_of_the_user_keeps_its_own_arguments(tmp_path, monkeypatch):
    (tmp_path / "narrow.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    assert built(tmp_path / "lock", "narrow:Narrow", {"width": 4}).config.n_embd == 4


@pytest.mark.parametrize("role", ["dataset", "loss", "optimizer", "score"])
def test_only_models_are_taken_from_the_library(role):
    with pytest.raises(RuntimeFinding, match="not a library of models"):
        resolve(role, "transformers:GPT2Config")


@pytest.mark.parametrize("name", ["pipeline", "AutoModel", "Trainer", "set_seed", "GPT2Tokenizer"])
def test_other_parts_of_the_library_are_no_models(name):
    with pytest.raises(RuntimeFinding, match=r"does not give a torch\.nn\.Module|cannot be imported"):
        resolve("model", f"transformers:{name}")
