"""Engines: they draw what the policy says with the weights it has now, and leave everything else as it was.

An engine may refuse a policy or a way of drawing by ConfigError, and may need something that is not here, such as a
server: a check that it cannot be put to is skipped, with its words.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError, RunError
from ...interfaces import Drawn, Needs, Outputs, Policy, Sampling
from ...records import Rollout
from ..acting import enlivened, rows, unmoved
from ..compare import difference, nudge
from ..kit import check_example
from ..records import example_prompts
from ..subjects import Example, NotApplicable
from ..toys import tiny_context, tiny_policy

FREE = Sampling(max_new_tokens=8)
GREEDY = Sampling(max_new_tokens=8, temperature=0)


def _policy(example: Example) -> Any:
    """A trained policy with the engine behind it and a critic on its own trunk, whose responses end at many lengths."""
    engine, others = example.build(), tiny_context()
    context = tiny_context(
        "policy", resolve=lambda kind, id: engine if kind == "engine" else others.component(kind, id)
    )
    policy: Any = tiny_policy(context, engine="tested")
    policy.prepare(Needs(values=True))
    return enlivened(policy)


def _train(policy: Policy[Any], seed: int) -> None:
    nudge(policy.module, seed, 0.3)
    policy.weights_changed()


def _draw(policy: Any, sampling: Sampling, *, seed: int = 0) -> Rollout:
    """Two samples of every prompt, drawn by the engine. Raises NotApplicable where it cannot."""
    try:
        rollout: Rollout = policy.generate(example_prompts() * 2, sampling, seed=seed)
    except (ConfigError, RunError) as error:
        raise NotApplicable(f"it does not draw here: {error}") from error
    return rollout


@torch.no_grad()
def _evaluated(policy: Policy[Any], rollout: Rollout, **needs: Any) -> Outputs:
    return policy.forward(rollout, Needs(**needs))


def _on_tokens(rollout: Rollout, a: Tensor, b: Tensor) -> float:
    """The largest difference on drawn tokens."""
    return difference(a[rollout.attention], b[rollout.attention])


@check_example("engine")
def responses_have_their_form(example: Example) -> None:
    """Ids, attention and records have the shapes and types of `Drawn`, tokens first and zeros in padding."""
    policy = _policy(example)
    _draw(policy, FREE)  # or it is skipped
    prompts = [policy.codec.encode_prompt(prompt, FREE.max_new_tokens) for prompt in example_prompts()]
    drawn: Drawn = policy.engine.draw(policy, prompts, FREE, seed=0, sample_ids=range(len(prompts)))
    rows, width = len(prompts), int(drawn.attention.sum(1).max())
    records = {name: getattr(drawn, name) for name in ("logprobs", "behaviour", "values")}
    expected: list[tuple[str, Any, torch.dtype, tuple[int, ...]]] = [
        ("ids", drawn.ids, torch.int64, (rows, width)),
        ("attention", drawn.attention, torch.bool, (rows, width)),
        ("truncated", drawn.truncated, torch.bool, (rows,)),
        *((name, record, torch.float32, (rows, width)) for name, record in records.items() if record is not None),
    ]
    for name, tensor, dtype, shape in expected:
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            example.fail(f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}", f"{dtype} of shape {shape}")
    lengths = drawn.attention.sum(1)
    places = torch.arange(width, device=lengths.device)
    if not torch.equal(drawn.attention, places < lengths[:, None]) or not lengths.all():
        example.fail("attention is not True from the left on", "responses of at least a token, padded on the right")
    for name, record in records.items():
        if record is not None and record[~drawn.attention].any():
            example.fail(f"{name} is not 0 in padding", "0 where nothing was drawn")


@check_example("engine")
def responses_end_where_they_say(example: Example) -> None:
    """A response goes on to its end of text or to the longest length, and `truncated` says which."""
    policy = _policy(example)
    rollout = _draw(policy, FREE)
    for row, truncated in zip(rows(rollout), rollout.truncated.tolist(), strict=True):
        ended = policy.codec.eos in row
        if policy.codec.eos in row[:-1] or not (ended or len(row) == FREE.max_new_tokens) or truncated == ended:
            example.fail(
                f"truncated={truncated} for the ids {row}, whose end of text is {policy.codec.eos}",
                f"responses that end with it, or that are truncated at {FREE.max_new_tokens} tokens",
            )


@check_example("engine")
def recorded_logprobs_equal_rescored_ones(example: Example) -> None:
    """The log-probabilities that it records are those of the policy, at any temperature."""
    policy = _policy(example)
    for temperature in (1.0, 0.7):
        rollout = _draw(policy, FREE.model_copy(update={"temperature": temperature}))
        moved = _on_tokens(rollout, rollout.logprobs, _evaluated(policy, rollout).logprobs)
        if not moved <= policy.rounding:
            example.fail(
                f"at temperature {temperature} recorded and rescored log-probabilities differ by up to {moved:.2g}",
                f"at most {policy.rounding}",
                "take them over the full softmax at the temperature, or leave them out: logprobs=None",
            )


@check_example("engine")
def recorded_values_equal_evaluated_ones(example: Example) -> None:
    """The values that it records are those of the policy's critic."""
    policy = _policy(example)
    rollout = _draw(policy, FREE)
    if rollout.values is None:
        raise NotApplicable("it records no values")
    values = _evaluated(policy, rollout, values=True).values
    assert values is not None
    moved = _on_tokens(rollout, rollout.values, values)
    if not moved <= policy.rounding:
        example.fail(
            f"recorded and evaluated values differ by up to {moved:.2g}",
            f"at most {policy.rounding}",
            "value the state before each token, or leave them out: values=None",
        )


@check_example("engine")
def draws_with_the_weights_of_now(example: Example) -> None:
    """At temperature 0 it takes the likeliest tokens of the policy as it is, also after training, and as reference."""
    policy = _policy(example)
    policy.set_reference("stage-start")

    def check(when: str) -> None:
        rollout = _draw(policy, GREEDY)
        found = _evaluated(policy, rollout, top_k=1)
        assert found.top_logprobs is not None
        moved = _on_tokens(rollout, found.top_logprobs[..., 0], found.logprobs)
        if not moved <= policy.rounding:
            example.fail(
                f"{when}, tokens drawn at temperature 0 are less likely than others by up to {moved:.2g}",
                "the likeliest tokens under the weights of now",
                "read the policy's weights in draw(), and let its adapter speak",
            )

    check("at first")
    _train(policy, seed=1)
    check("after training")
    with policy.as_reference():
        check("as reference")


@check_example("engine")
def top_k_is_kept(example: Example) -> None:
    """With top_k it draws among so many tokens and records their probabilities among themselves."""
    policy = _policy(example)
    rollout = _draw(policy, FREE.model_copy(update={"top_k": 2}))
    found = _evaluated(policy, rollout, top_k=2)
    assert found.top_logprobs is not None
    if bool((found.logprobs < found.top_logprobs[..., -1] - policy.rounding)[rollout.attention].any()):
        example.fail(
            "with top_k: 2 it draws other tokens than the two likeliest",
            "one of the two",
            "refuse top_k, or keep to it",
        )
    if rollout.behaviour_logprobs is None:
        example.fail("with top_k it records no probabilities under what it drew from", "behaviour of shape (B, T)")
    among = found.logprobs - found.top_logprobs.logsumexp(-1)
    if not (moved := _on_tokens(rollout, rollout.behaviour_logprobs, among)) <= policy.rounding:
        example.fail(
            f"behaviour is off by up to {moved:.2g} with top_k: 2", "log-probabilities among the two likeliest"
        )


@check_example("engine")
def least_length_is_kept(example: Example) -> None:
    """With min_new_tokens no response is shorter."""
    rollout = _draw(_policy(example), FREE.model_copy(update={"min_new_tokens": 5}))
    if int(rollout.lengths.min()) < 5:
        example.fail(
            f"a response of {int(rollout.lengths.min())} tokens with min_new_tokens: 5",
            "at least 5",
            "refuse min_new_tokens, or keep end of text from being drawn before",
        )


@check_example("engine")
def stop_strings_are_kept(example: Example) -> None:
    """A response goes on to the token that completes a stop string and no further, and is not truncated then."""
    policy = _policy(example)
    letters = Counter(c for s in _draw(policy, FREE).samples for c in s.response if c.isascii() and c.isprintable())
    stop = letters.most_common(1)[0][0]
    rollout = _draw(policy, FREE.model_copy(update={"stop": (stop,)}))
    for row, truncated in zip(rows(rollout), rollout.truncated.tolist(), strict=True):
        if stop in policy.codec.decode(row[:-1]) or (stop in policy.codec.decode(row) and truncated):
            example.fail(
                f"truncated={truncated} for {policy.codec.decode(row)!r} with the stop string {stop!r}",
                "a response that ends with the token that completes it",
                "refuse stop strings, or end there",
            )


@check_example("engine")
def the_seed_decides(example: Example) -> None:
    """The same seed draws the same, another seed draws something else."""
    policy = _policy(example)
    first, again, other = (rows(_draw(policy, FREE, seed=seed)) for seed in (1, 1, 2))
    if first != again:
        example.fail("the same seed draws other tokens", "the same ones", "take all randomness from `seed`")
    if first == other:
        example.fail("another seed draws the same tokens", "other ones", "use `seed` and `sample_ids`")


@check_example("engine")
def leaves_the_policy_as_it_was(example: Example) -> None:
    """Drawing moves no weight, no flag of a parameter and no random generator of torch."""
    policy = _policy(example)
    with unmoved(example, policy, "drawing", "put back what draw() changes"):
        _draw(policy, FREE)
