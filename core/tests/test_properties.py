"""What holds for every input: registry files, feedback records, masks, and the credit of spans."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rlhf_core import functional as F
from rlhf_core.policies import at_last_character
from rlhf_core.records import (
    Comparison,
    Demonstration,
    Edit,
    Feedback,
    Keywords,
    Prompt,
    Rating,
    Rollout,
    Sample,
    Scores,
    Sentiment,
    Span,
    parse_feedback,
)
from rlhf_core.registry.reader import parse, scalar
from rlhf_core.rewards.credit import credit_spans
from rlhf_core.rl.rewards import token_rewards

# --- registry files --------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f"), max_size=12)
PRINTABLE = st.text(st.characters(exclude_categories=["Cs", "Cc", "Co", "Cn"]), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | PRINTABLE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(PRINTABLE, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(JSON, st.sampled_from([None, 2]), st.booleans())
def test_whatever_json_says_the_registry_reader_reads(data: Any, indent: int | None, ascii: bool) -> None:
    text = json.dumps(data, indent=indent, ensure_ascii=ascii)
    assert parse(text, "file")[0] == data


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(PRINTABLE.filter(bool), st.integers() | PRINTABLE, min_size=1, max_size=6))
def test_every_value_knows_its_line(data: dict[str, Any]) -> None:
    text = "\n".join(f"# about it\n{json.dumps(key)}: {json.dumps(value)}" for key, value in data.items())
    found, lines = parse(text, "file")
    assert found == data
    assert [lines[(key,)] for key in data] == list(range(2, 2 * len(data) + 1, 2))


@given(st.integers() | st.floats(allow_nan=False))
def test_numbers_are_read_as_they_are_written(number: float) -> None:
    assert scalar(str(number)) == number or math.isinf(number)


# --- feedback records ------------------------------------------------------------------------------------------------

WORDS = TEXT.filter(lambda text: bool(text.strip()))
SCORE = st.floats(0, 1)
CHAT = st.lists(
    st.builds(lambda role, content: {"role": role, "content": content}, st.sampled_from(["user", "assistant"]), TEXT),
    min_size=1, max_size=3,
)  # fmt: skip
ABOUT: dict[str, Any] = {
    "prompt": st.builds(lambda text, fields: {"text": text, "fields": fields}, WORDS | CHAT,
                        st.dictionaries(TEXT, JSON, max_size=2)),
    "annotator": st.none() | TEXT, "comment": st.none() | TEXT, "time": st.none() | st.datetimes(),
    "weight": st.floats(0, 10),
}  # fmt: skip
SPANS = st.lists(
    st.builds(lambda start, size, score: {"start": start, "end": start + size, "score": score},
              st.integers(0, 9), st.integers(1, 9), SCORE), max_size=2,
)  # fmt: skip
RECORDS: st.SearchStrategy[Feedback] = st.one_of(
    st.builds(Rating, **ABOUT, response=TEXT, score=SCORE, scale=st.just((0, 1)), spans=SPANS,
              aspects=st.dictionaries(TEXT, SCORE, max_size=2)),
    st.lists(TEXT, min_size=2, max_size=4, unique=True).flatmap(lambda texts: st.builds(
        Comparison, **ABOUT, responses=st.just(tuple(texts)), confidence=st.none() | SCORE,
        ranks=st.lists(st.integers(0, 3), min_size=len(texts), max_size=len(texts)))),
    st.builds(Edit, **ABOUT, original=WORDS, edited=WORDS),
    st.builds(Demonstration, **ABOUT, response=WORDS),
    st.builds(Keywords, **ABOUT, wanted=st.lists(TEXT, max_size=2)),
    st.builds(Sentiment, **ABOUT, response=TEXT, label=st.sampled_from(["positive", "neutral", "negative"])),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(RECORDS, st.floats(0, 5))
def test_a_record_comes_back_from_its_json_with_the_same_id(record: Feedback, weight: float) -> None:
    line = json.dumps(record.model_dump(mode="json"))
    again = parse_feedback(json.loads(line))
    assert again == record and again.id == record.id
    assert record.model_copy(update={"weight": weight}).id == record.id


@settings(max_examples=30, deadline=None)
@given(RECORDS, TEXT)
def test_another_content_is_another_id(record: Feedback, comment: str) -> None:
    other = type(record).model_validate({**record.model_dump(), "comment": comment})
    assert (other.id == record.id) == (comment == record.comment)


# --- masks -----------------------------------------------------------------------------------------------------------

JUNK = [math.nan, math.inf, -math.inf, 1e38]


@st.composite
def masked(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A mask (B, T) with holes, and two pairs of tensors (2, B, T) that differ in masked positions only."""
    rows, width = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    size = rows * width
    mask = torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size))).view(rows, width)
    numbers = st.lists(st.floats(-3, 3, width=32), min_size=2 * size, max_size=2 * size)
    clean = torch.tensor(draw(numbers), dtype=torch.float64).view(2, rows, width)
    junk = torch.tensor(
        draw(st.lists(st.sampled_from(JUNK), min_size=2 * size, max_size=2 * size)), dtype=torch.float64
    )
    return mask, clean, torch.where(mask, clean, junk.view(2, rows, width))


UNDER_A_MASK: dict[str, Any] = {
    "masked_mean": lambda x, y, m: F.masked_mean(x, m),
    "masked_mean of rows": lambda x, y, m: F.masked_mean(x, m, dim=1),
    "masked_var": lambda x, y, m: F.masked_var(x, m),
    "masked_whiten": lambda x, y, m: F.masked_whiten(x, m),
    "token-mean": lambda x, y, m: F.aggregate(x, m, "token-mean"),
    "seq-mean-token-sum": lambda x, y, m: F.aggregate(x, m, "seq-mean-token-sum"),
    "seq-mean-token-mean": lambda x, y, m: F.aggregate(x, m, "seq-mean-token-mean"),
    "discounted_returns": lambda x, y, m: F.discounted_returns(x, m, gamma=0.9),
    "gae": lambda x, y, m: torch.stack(F.gae(x, y, m, gamma=0.9, lam=0.8)),
    "ppo_policy_loss": lambda x, y, m: F.ppo_policy_loss(x, y, x.detach() * y.detach(), m, clip_low=0.2, clip_high=0.2)[
        0
    ],
    "ppo_value_loss": lambda x, y, m: F.ppo_value_loss(x, y, y + 1, m, clip=0.2)[0],
}


@settings(max_examples=60, deadline=None)
@given(masked(), st.sampled_from(list(UNDER_A_MASK)))
def test_junk_under_a_mask_reaches_neither_values_nor_gradients(found: Any, name: str) -> None:
    mask, *pair = found
    results = []
    for numbers in pair:
        x = numbers[0].clone().requires_grad_()
        value = UNDER_A_MASK[name](x, numbers[1], mask)
        results.append((value.detach(), torch.autograd.grad(value.sum(), x, allow_unused=True)[0]))
    (clean, slope), (junk, junk_slope) = results
    assert clean.isfinite().all() and torch.equal(clean, junk)
    assert slope is None or (torch.equal(slope, junk_slope) and not junk_slope[~mask].any())


# --- spans -----------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_whatever_the_spans_say_a_row_of_token_rewards_sums_to_its_score(data: st.DataObject) -> None:
    width = data.draw(st.integers(1, 6))
    mask = torch.tensor(
        data.draw(st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=2, max_size=2))
    )
    span = st.builds(lambda start, size, credit: Span(start, start + size, credit),
                     st.integers(0, 3 * width), st.integers(1, 9), st.floats(-2, 2))  # fmt: skip
    spans = [tuple(data.draw(st.lists(span, max_size=3))) for _ in range(2)]
    score = torch.tensor(data.draw(st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=2)))
    ids = torch.zeros(2, width, dtype=torch.long)
    rollout = Rollout(
        samples=tuple(Sample(Prompt(text="p"), "abc") for _ in range(2)), prompt_ids=ids[:, :1],
        prompt_mask=torch.ones(2, 1, dtype=torch.bool), response_ids=ids, mask=mask,
        attention=torch.ones(2, width, dtype=torch.bool), logprobs=torch.zeros(2, width),
        truncated=torch.zeros(2, dtype=torch.bool), groups=torch.arange(2), sample_ids=torch.arange(2),
        temperature=1.0,
    ).replace(scores={"r": Scores(score, spans=tuple(spans))})  # fmt: skip
    policy: Any = SimpleNamespace(
        token_ends=lambda ids: [3 * (i + 1) for i in range(len(ids))]
    )  # three characters each
    mix: Any = SimpleNamespace(weights={"r": 0.5})
    rewards = token_rewards(rollout, score, mix, policy)
    assert not rewards[~mask].any()
    wanted = torch.where(mask.any(1), score, 0.0)  # nobody to pay in an empty row
    torch.testing.assert_close(rewards.sum(1), wanted, rtol=0, atol=1e-5)


@st.composite
def tiled(draw: st.DrawFn) -> tuple[str, list[tuple[int, int]]]:
    """A response and the ranges of its tokens, some of them empty, as of tokens that end inside a character."""
    sizes = draw(st.lists(st.integers(0, 4), min_size=1, max_size=6))
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return "x" * ends[-1], list(zip([0, *ends], ends, strict=False))


@given(tiled(), st.data())
def test_credit_of_tokens_is_neither_lost_nor_made_as_spans(tokens: Any, data: st.DataObject) -> None:
    response, ranges = tokens
    credits = data.draw(st.lists(st.integers(-3, 3).map(float), min_size=len(ranges), max_size=len(ranges)))
    spans = credit_spans(response, ranges, credits)
    seen = [credit for (start, end), credit in zip(ranges, credits, strict=True) if end > start]
    assert sum(span.credit for span in spans) == sum(seen)
    assert all(0 <= span.start < span.end <= len(response) for span in spans)


@given(tiled(), st.data())
def test_a_token_gets_the_value_of_the_span_that_holds_its_last_character(tokens: Any, data: st.DataObject) -> None:
    response, ranges = tokens
    cuts = sorted(data.draw(st.sets(st.integers(0, len(response)), min_size=2, max_size=4)) if response else ())
    spans = [(a, b, float(i)) for i, (a, b) in enumerate(pairwise(cuts))]
    of_characters = {c: value for a, b, value in spans for c in range(a, b)}  # one span at most for each
    expected = [of_characters.get(end - 1) if end > start else None for start, end in ranges]
    assert at_last_character(ranges, spans) == expected
