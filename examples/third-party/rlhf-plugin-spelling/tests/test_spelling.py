"""What is right and what is wrong, in numbers counted by hand."""

import pytest
from pydantic import ValidationError
from rlhf_core.records import Prompt, Sample, Scores, Span
from rlhf_core.testing import tiny_context
from rlhf_plugin_spelling.config import SpellingRewardConfig
from rlhf_plugin_spelling.reward import SpellingReward


def score(*responses: str, **options: object) -> Scores:
    reward = SpellingReward(SpellingRewardConfig.model_validate(options), tiny_context("reward", "spelling"))
    return reward.score([Sample(Prompt(text="Hello?"), response) for response in responses])


def test_the_share_of_right_words() -> None:
    assert score("Thansk for the parcel!", "Thanks!", "").values.tolist() == [0.75, 1.0, 0.0]


def test_a_wrong_word_pays_at_its_own_place() -> None:
    spans = score("Thansk for teh parcel!").spans
    assert spans == ((Span(0, 6, credit=-0.25), Span(11, 14, credit=-0.25)),)


def test_apostrophes_and_case() -> None:
    assert score("DON'T shout", "don’t shout").values.tolist() == [1.0, 1.0]


def test_words_of_the_trade_and_other_languages() -> None:
    assert score("RLHF helps", known=["rlhf"]).values.tolist() == [1.0]
    assert score("casa amigo", language="es").values.tolist() == [1.0]
    assert score("!?", silence=0.5).values.tolist() == [0.5]


def test_a_language_without_a_dictionary() -> None:
    with pytest.raises(ValidationError, match="language"):
        SpellingRewardConfig.model_validate({"language": "tlh"})
