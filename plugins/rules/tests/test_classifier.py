"""Reward `classifier`, on models that the tests make and save themselves."""

from __future__ import annotations

from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from rlhf_core.errors import ConfigError
from rlhf_core.records import Message, Prompt, Sample
from rlhf_plugin_rules.classifier import Classifier

from .toys import build, score, values

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh", "user", "assistant"]
LABELS = ["bad", "fine", "Good"]
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"


def save(folder: Path, kind: str = "bert", *, template: str | None = None, head: bool = True, **options: Any) -> str:
    """A tiny model with large random weights over words of one letter, and its tokenizer; gpt2 has no special token
    but the end of text. Returns the folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"eos_token": "[SEP]"}
    if kind == "bert":
        special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    names = ["input_ids", "token_type_ids", "attention_mask"][:: 1 if kind == "bert" else 2]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", chat_template=template, model_input_names=names, **special
    ).save_pretrained(folder)
    sizes = {
        "bert": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
                 "max_position_embeddings": 24},
        "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 24, "bos_token_id": None, "eos_token_id": 3},
    }[kind]  # fmt: skip
    labels = options.pop("labels", LABELS)
    config = AutoConfig.for_model(kind, vocab_size=len(WORDS), initializer_range=1.0, num_labels=len(labels), **sizes,
                                  **options)  # fmt: skip
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: i for i, name in enumerate(labels)}
    torch.manual_seed(0)
    model = (AutoModelForSequenceClassification if head else AutoModel).from_config(config)
    model.save_pretrained(folder)
    return str(folder)


def fix_logits(folder: str, *logits: float) -> str:
    """Make the saved BERT answer with these logits whatever it reads."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.classifier.weight.data.zero_()
    model.classifier.bias.data = torch.tensor(logits)
    model.save_pretrained(folder)
    return folder


TEXTS = ["a b c", "d", "", "h g f e d c b a", "a b c d", "你好"]


def test_probability_and_logit_of_a_label(tmp_path: Path) -> None:
    folder = fix_logits(save(tmp_path), log(1), log(2), log(5))
    config: dict[str, Any] = {"model": folder}
    assert values(Classifier, "a", label="Good", **config) == pytest.approx([5 / 8])
    assert values(Classifier, "a", label="good", **config) == pytest.approx([5 / 8])
    assert values(Classifier, "a", "", label=1, **config) == pytest.approx([2 / 8] * 2)
    assert values(Classifier, "a", label="fine", value="logit", **config) == pytest.approx([log(2)])


def test_labels_that_do_not_exclude_each_other_get_a_sigmoid(tmp_path: Path) -> None:
    many = fix_logits(save(tmp_path / "many", problem_type="multi_label_classification"), log(1), log(2), log(5))
    assert values(Classifier, "a", label="Good", model=many) == pytest.approx([5 / 6])
    one = fix_logits(save(tmp_path / "one", labels=["reward"]), log(3))
    assert values(Classifier, "a", label="reward", model=one) == pytest.approx([3 / 4])
    assert values(Classifier, "a", label=0, model=one, value="logit") == pytest.approx([log(3)])


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("of", ["response", "prompt-response"])
def test_scores_tell_texts_apart_and_do_not_depend_on_the_batch(tmp_path: Path, kind: str, of: str) -> None:
    config: dict[str, Any] = {"model": save(tmp_path, kind), "label": 1, "of": of, "value": "logit"}
    together = values(Classifier, *TEXTS, **config)
    assert len({round(value, 4) for value in together}) == len(TEXTS)
    assert together == pytest.approx([values(Classifier, text, **config)[0] for text in TEXTS], abs=1e-5)
    assert together == pytest.approx(values(Classifier, *TEXTS, micro_batch_tokens=10, **config), abs=1e-5)
    assert score(Classifier, [], **config).values.shape == (0,)


def test_the_model_sees_what_its_own_pipeline_would_show_it(tmp_path: Path) -> None:
    from transformers import pipeline

    folder = save(tmp_path)
    theirs: Any = pipeline("text-classification", model=folder, top_k=None)
    expected = [{s["label"]: s["score"] for s in theirs([text])[0]}["Good"] for text in TEXTS]
    assert values(Classifier, *TEXTS, model=folder, label="Good") == pytest.approx(expected, abs=1e-5)
    pair = theirs([{"text": "a b", "text_pair": "c d"}])[0]
    found = build(Classifier, model=folder, label="Good", of="prompt-response").score(
        [Sample(Prompt(text="a b"), "c d")]
    )
    assert found.values.tolist() == pytest.approx([next(s["score"] for s in pair if s["label"] == "Good")], abs=1e-5)


def test_the_prompt_is_read_only_if_asked_for(tmp_path: Path) -> None:
    folder = save(tmp_path)
    samples = [Sample(Prompt(text=text), "a b") for text in ("c", "d e")]
    alone = build(Classifier, model=folder, label=0, value="logit").score(samples).values
    paired = build(Classifier, model=folder, label=0, value="logit", of="prompt-response").score(samples).values
    assert alone[0] == alone[1]
    assert abs(paired[0] - paired[1]) > 0.1


def test_a_chat_template_is_used_where_there_is_one(tmp_path: Path) -> None:
    folder = save(tmp_path, "gpt2", template=TEMPLATE)
    chat = Sample(Prompt(text=(Message(role="user", content="a b"),)), "c d")
    whole = build(Classifier, model=folder, label=0, of="prompt-response").score([chat]).values
    written = values(Classifier, "user a b assistant c d", model=folder, label=0)
    assert whole.tolist() == pytest.approx(written)


def test_of_long_texts_the_end_of_the_prompt_and_the_beginning_of_the_response_count(tmp_path: Path) -> None:
    folder = save(tmp_path)

    def value(prompt: str, response: str, of: str = "prompt-response") -> float:
        model = build(
            Classifier, model=folder, label=0, of=of, max_tokens=9, value="logit"
        )  # six words and three special tokens
        return float(model.score([Sample(Prompt(text=prompt), response)]).values)

    assert value("h g a b c", "d e f") == pytest.approx(value("a b c", "d e f"))
    assert value("a b c", "d e f g h") == pytest.approx(value("c", "d e f g h"))
    assert value("a b", "c d e f g h a b") == pytest.approx(value("c", "c d e f g h b"))  # no room for the prompt
    assert value("a", "a b c d e f g h", "response") == pytest.approx(value("b", "a b c d e f g", "response"))
    # beyond what the model itself can take, whatever max_tokens says
    assert values(Classifier, "a " * 100, model=folder, label=0) == values(Classifier, "a " * 22, model=folder, label=0)


def test_labels_and_models_that_do_not_exist(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    for label in ("great", 3):
        with pytest.raises(ConfigError) as error:
            build(Classifier, model=folder, label=label)
        assert str(error.value) == (
            f"reward 'rule' label: {label!r} is no label of this model; expected one of 'bad' (0), 'fine' (1), 'Good' (2); "
            "take a name or an index from the list"
        )
    with pytest.raises(ConfigError, match="cannot load hub id"):
        build(Classifier, model=str(tmp_path / "nowhere"), label=0)


def test_a_model_without_a_trained_head_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no weights for classifier\.bias, classifier\.weight.*: they would be random; "
                                          "expected a model with a trained classification head"):  # fmt: skip
        build(Classifier, model=save(tmp_path, head=False), label=0)


def test_a_regression_knows_no_probability(tmp_path: Path) -> None:
    folder = fix_logits(save(tmp_path, labels=["score"], problem_type="regression"), 2.5)
    with pytest.raises(ConfigError, match="is a regression, which knows no probability; expected `logit`"):
        build(Classifier, model=folder, label="score")
    assert values(Classifier, "a", model=folder, label="score", value="logit") == [2.5]
