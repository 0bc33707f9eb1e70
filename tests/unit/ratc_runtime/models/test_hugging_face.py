"""Models of `transformers` by the name of their class, or of their config's."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from ratc_runtime.errors import RuntimeFinding  # noqa: E402
from ratc_runtime.models.build import build_model  # noqa: E402
from ratc_runtime.models.import_callable import resolve  # noqa: E402

from tests.helpers.lockfile import lock_with  # noqa: E402

GPT2 = {"vocab_size": 8, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
BERT = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
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
        ("ResNetConfig", {"depths": [1], "hidden_sizes": [8]}, transformers.ResNetModel),
    ],
)
def test_class_or_its_config_names_the_model(tmp_path, name, args, model):
    found = built(tmp_path, f"transformers:{name}", args)
    assert type(found) is model
    assert {key: getattr(found.config, key) for key in args} == args
    assert list(found.state_dict()) == list(model(found.config).state_dict())


def test_mapping_reaches_the_model_as_keyword_arguments(tmp_path):
    ids = torch.tensor([[1, 2, 3]])
    model = built(tmp_path, "transformers:GPT2Config", GPT2, output="logits").eval()
    hidden = torch.tensor([[1, 1, 0]])
    assert model({"input_ids": ids, "attention_mask": hidden}).equal(model(ids, attention_mask=hidden))
    assert model(ids).shape == (1, 3, 8)


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
    assert help in str(found.value.help)


@pytest.mark.parametrize(
    ("key", "value"), [("attn_implementation", "somebody/kernels"), ("use_pretrained_backbone", True)]
)
def test_value_that_loads_from_the_network_is_refused(tmp_path, key, value):
    with pytest.raises(RuntimeFinding, match=f"`{key}` is {value!r}|has no `{key}`"):
        built(tmp_path, "transformers:DetrConfig", {key: value})


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
