"""What the columns hold: TF-IDF and products, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rlhf_core.records import Message, Prompt, Sample
from rlhf_plugin_linear.config import LinearRewardConfig
from rlhf_plugin_linear.features import PROMPT_WORDS, TextFeatures, question


def learn(samples: list[tuple[str, str]], **config: Any) -> TextFeatures:
    features = TextFeatures(LinearRewardConfig(**{"min_count": 1, "ngrams": (1, 1), **config}))
    features.learn([Sample(Prompt(text=prompt), response) for prompt, response in samples])
    return features


def row(features: TextFeatures, response: str, prompt: str = "Hello") -> list[float]:
    values: list[float] = features.matrix([Sample(Prompt(text=prompt), response)]).toarray()[0].tolist()
    return values


def columns(features: TextFeatures, name: str) -> list[str]:
    vocabulary: list[str] = features.state_dict()[name]["vocabulary"]
    return vocabulary


def test_a_chat_asks_its_last_message() -> None:
    chat = (Message(role="user", content="Tea?"), Message(role="assistant", content="Yes."),
            Message(role="user", content="Now?"))  # fmt: skip
    assert question(Prompt(text=chat)) == "Now?"
    assert question(Prompt(text="Tea?\nYes")) == "Tea?\nYes"


def test_tfidf_of_two_documents_by_hand() -> None:
    features = learn([("p", "Red red blue"), ("p", "blue, green")], features="response", cross=False)
    assert columns(features, "ngrams") == ["blue", "green", "red"]
    # idf = ln(3 / (1 + documents)) + 1: blue (in both) 1, red and green 1.405465.
    # "red red blue": blue 1, red (1 + ln 2) * 1.405465 = 2.379659; their norm is 2.581236
    assert row(features, "red red blue") == pytest.approx([0.387411, 0, 0.921907], abs=1e-6)
    assert row(features, "green") == [0, 1, 0]
    assert row(features, "yellow") == row(features, "") == [0, 0, 0]


def test_words_of_the_prompt_have_columns_of_their_own_if_wanted() -> None:
    samples = [("tea please", "yes"), ("coffee please", "no"), ("milk", "no")]
    features = learn(samples, cross=False)
    # please is in more than half of the prompts
    assert columns(features, "prompt") == ["coffee", "milk", "tea"]
    assert row(features, "no", "tea please") == [1, 0, 0, 0, 1]
    assert learn(samples, cross=False, features="response").count == 2


def test_a_product_is_the_tfidf_of_both_words_multiplied() -> None:
    samples = [("hot tea", "yes sir"), ("coffee", "no"), ("milk", "no"), ("water", "no")]
    features = learn(samples, features="response", ngrams=(2, 2))
    assert columns(features, "ngrams") == ["yes sir"]
    assert columns(features, "prompt") == ["coffee", "hot", "milk", "tea", "water"]
    assert columns(features, "words") == ["no", "sir", "yes"]
    # the pairs that occurred: (coffee no) (hot sir) (hot yes) (milk no) (tea sir) (tea yes) (water no).
    # hot and tea have one idf, so each is 1 / sqrt(2) of "hot tea", likewise yes and sir: products are 1 / 2
    assert row(features, "yes, sir", "hot tea") == pytest.approx([1, 0, 0.5, 0.5, 0, 0.5, 0.5, 0])
    assert row(features, "yes", "tea") == pytest.approx([0, 0, 0, 0, 0, 0, 1, 0])
    assert row(features, "no", "tea") == [0] * 8  # never seen together
    assert row(features, "", "tea") == row(features, "yes", "lemonade") == [0] * 8


def test_similarity_with_products_is_that_of_responses_times_one_more_than_that_of_prompts() -> None:
    prompts, responses = ["red ball", "blue ball", "red cup", "dog"], ["come here now", "go now", "come", "sit here"]
    features = learn([(p, r) for p in prompts for r in responses], features="response")
    plain = learn([(p, r) for p in prompts for r in responses], cross=False)
    a, b = ("come here now", "red ball"), ("sit here", "red cup")
    full = np.dot(row(features, *a), row(features, *b))
    both = np.array([row(plain, *a), row(plain, *b)])
    of_responses, of_prompts = (float(np.prod(part, axis=0).sum()) for part in np.split(both, [5], axis=1))
    assert 0 < of_responses < 1 and 0 < of_prompts < 1
    assert full == pytest.approx(of_responses * (1 + of_prompts))


def test_only_the_most_telling_words_of_a_prompt_are_multiplied() -> None:
    rare = [f"rare{i}" for i in range(PROMPT_WORDS)]
    samples = [(" ".join(["common", *rare]), "yes"), ("common", "no"), ("a", "no"), ("b", "no")]
    state = learn(samples, features="response").state_dict()
    prompt, response = state["prompt"]["vocabulary"], state["words"]["vocabulary"]
    pairs = {(prompt[code // 2], response[code % 2]) for code in state["products"].tolist()}
    assert pairs == {*((word, "yes") for word in rare), ("common", "no"), ("a", "no"), ("b", "no")}


def test_rare_and_surplus_terms_are_left_out() -> None:
    samples = [("x", "a a b"), ("y", "a c"), ("z", "a c d")]
    assert columns(learn(samples, min_count=2, cross=False), "ngrams") == ["a", "c"]
    assert columns(learn(samples, max_features=1, cross=False), "ngrams") == ["a"]
    samples = [("p", "s"), ("p", "s"), ("p", "t"), ("q", "t"), ("q", "t"), ("q", "s"), ("n", "s"), ("m", "t")]
    # of p s, p t, q s, q t (codes 0 to 3) the first and the last were said twice
    assert learn(samples, max_features=2).state_dict()["products"].tolist() == [0, 3]
    assert learn(samples, min_count=2).state_dict()["products"].tolist() == [0, 3]


def test_characters() -> None:
    features = learn([("x", "Abba")], analyzer="char", ngrams=(2, 3), cross=False)
    assert columns(features, "ngrams") == ["ab", "abb", "ba", "bb", "bba"]


def test_prompts_without_a_word_in_common_leave_responses_to_speak() -> None:
    features = learn([("?", "yes yes"), ("!", "no")])
    assert (features.count, columns(features, "words")) == (2, ["no", "yes"])
    assert row(features, "yes", "?") == [0, 1]


def test_a_row_does_not_depend_on_the_others() -> None:
    texts = [("tea now", "yes of course"), ("coffee", "no"), ("tea", ""), ("milk now", "yes and no and yes")]
    features = learn(texts * 300, ngrams=(1, 2))  # more than one chunk
    samples = [Sample(Prompt(text=prompt), response) for prompt, response in texts * 300]
    matrix = features.matrix(samples)
    assert matrix.shape == (1200, features.count)
    for i in (0, 3, 1198):
        assert (matrix[[i]].toarray() == features.matrix([samples[i]]).toarray()).all()
    assert features.matrix([]).shape == (0, features.count)
