"""Environments: one row per prompt, the policy's own tokens marked as such, and nothing decided but by seed and ids.

An environment may need something that is not here, such as a server: a check that it cannot be put to is skipped, with
its words.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ...errors import ConfigError, RunError
from ...interfaces import Needs, Sampling
from ...records import Prompt, Rollout
from ..acting import enlivened, rows, unmoved
from ..compare import difference
from ..kit import check_example
from ..records import example_prompts
from ..subjects import Example, NotApplicable
from ..toys import tiny_model, tiny_policy

SAMPLING = Sampling(max_new_tokens=8)


def _policy() -> Any:
    """A trained policy whose responses end at many lengths, with room for conversations."""
    model = tiny_model()
    model["fresh"]["sizes"]["n_positions"] = 1024
    return enlivened(tiny_policy(**model))


def _prompts() -> list[Prompt]:
    return example_prompts() * 2


def _numbers(rows: int) -> list[int]:
    """Sample ids that nobody would guess."""
    return [3 + 7 * row for row in range(rows)]


def _acted(
    example: Example,
    policy: Any,
    prompts: Sequence[Prompt] | None = None,
    sample_ids: Sequence[int] | None = None,
    *,
    sampling: Sampling = SAMPLING,
    seed: int = 0,
) -> Rollout:
    """A rollout of a new environment. Raises NotApplicable where it cannot act."""
    prompts = _prompts() if prompts is None else prompts
    ids = _numbers(len(prompts)) if sample_ids is None else sample_ids
    try:
        rollout: Rollout = example.build().rollout(policy, prompts, sampling, seed=seed, sample_ids=ids)
    except (ConfigError, RunError) as error:
        raise NotApplicable(f"it does not act here: {error}") from error
    return rollout


@check_example("environment")
def rollouts_have_their_form(example: Example) -> None:
    """One row per prompt in the order given, and every entry of the shape and type that `Rollout` says."""
    policy, prompts = _policy(), _prompts()
    rollout = _acted(example, policy, prompts)
    if [sample.prompt for sample in rollout.samples] != prompts:
        example.fail(
            f"{len(rollout)} samples for {len(prompts)} prompts, or of other ones",
            "a sample per prompt, in the order given, with the prompt as it was given",
            "rewards read Sample.prompt: put back the given one",
        )
    before, after = rollout.prompt_ids.shape[1], rollout.response_ids.shape[1]
    columns = {"prompt_ids": before, "prompt_mask": before, "truncated": None, "groups": None, "sample_ids": None}
    truths = {"prompt_mask", "attention", "mask", "truncated"}
    for name, tensor in rollout.tensors().items():
        width = columns.get(name, after)
        shape = (len(prompts),) if width is None else (len(prompts), width)
        whole = name in ("prompt_ids", "response_ids", "groups", "sample_ids")
        dtype = torch.bool if name in truths else torch.int64 if whole else torch.float32
        if tensor.dtype != dtype or tuple(tensor.shape) != shape or tensor.requires_grad:
            got = f"{tensor.dtype} of shape {tuple(tensor.shape)}{' with a gradient' * tensor.requires_grad}"
            example.fail(f"{name} is {got}", f"{dtype} of shape {shape}", "see rlhf_core.records.Rollout")
    for words, wrong in _flaws(rollout, policy):
        if wrong:
            example.fail(words, "what rlhf_core.records.Rollout says of it", "pad prompts left and responses right")


def _flaws(rollout: Rollout, policy: Any) -> Iterator[tuple[str, bool]]:
    """What may be wrong with entries of the right shape, and whether it is."""
    lengths = rollout.attention.sum(1)
    places = torch.arange(rollout.attention.shape[1])
    left = torch.arange(rollout.prompt_mask.shape[1], 0, -1) <= rollout.prompt_mask.sum(1, keepdim=True)
    texts = [
        policy.token_ends(row)[-1:] == [len(s.response)] for row, s in zip(rows(rollout), rollout.samples, strict=True)
    ]
    yield "prompt_mask is not True to the right edge", not torch.equal(rollout.prompt_mask, left)
    yield "attention is not True from the left on", not torch.equal(rollout.attention, places < lengths[:, None])
    yield "there are prompts or responses without a token", not bool(rollout.prompt_mask.any(1).all() & lengths.all())
    yield "mask is True in padding", bool((rollout.mask & ~rollout.attention).any())
    yield "logprobs is not 0 in padding", bool(rollout.logprobs[~rollout.attention].any())
    yield "sample_ids are not those that were given", rollout.sample_ids.tolist() != _numbers(len(rollout))
    yield f"temperature is {rollout.temperature}, drawn at {SAMPLING.heat}", rollout.temperature != SAMPLING.heat
    yield "Sample.response is not the text of response_ids", not all(texts)


@check_example("environment")
def only_its_own_tokens_are_learnt(example: Example) -> None:
    """`mask` is True on tokens that the policy drew, and on no others: not where someone else speaks."""
    policy = _policy()
    drawn: list[list[int]] = []
    draw = policy.engine.draw

    def noted(*arguments: Any, **options: Any) -> Any:
        found = draw(*arguments, **options)
        drawn.extend(ids[real].tolist() for ids, real in zip(found.ids, found.attention, strict=True))
        return found

    policy.engine.draw = noted
    rollout = _acted(example, policy)
    if not bool(rollout.mask.any()):
        example.fail("mask is False everywhere", "True on the policy's own tokens", "or there is nothing to learn from")
    for ids, mask in zip(rollout.response_ids.tolist(), rollout.mask.tolist(), strict=True):
        for turn in _turns(ids, mask):
            if not any(turn == row[i : i + len(turn)] for row in drawn for i in range(len(row))):
                example.fail(
                    f"mask is True on {policy.codec.decode(turn)!r}, which the policy did not draw",
                    "True on the policy's own tokens alone",
                    "set mask False where another speaks, and keep the ids as they were drawn",
                )


def _turns(ids: list[int], mask: list[bool]) -> Iterator[list[int]]:
    """The stretches of `ids` on which `mask` is True."""
    turn: list[int] = []
    for token, own in zip([*ids, 0], [*mask, False], strict=True):
        if own:
            turn.append(token)
        elif turn:
            yield turn
            turn = []


@check_example("environment")
def recorded_logprobs_equal_rescored_ones(example: Example) -> None:
    """Where the mask is True, recorded log-probabilities are the policy's behind what the rollout says stood before."""
    policy = _policy()
    for temperature in (1.0, 0.7):
        sampling = SAMPLING.model_copy(update={"temperature": temperature})
        rollout = _acted(example, policy, sampling=sampling)
        with torch.no_grad():
            again = policy.forward(rollout, Needs()).logprobs
        moved, bound = (
            difference(rollout.logprobs[rollout.mask], again[rollout.mask]),
            getattr(policy, "rounding", 1e-4),
        )
        if not moved <= bound:
            example.fail(
                f"at temperature {temperature} recorded and rescored log-probabilities differ by up to {moved:.2g}",
                f"at most {bound}",
                "let prompt_ids and response_ids hold all that the policy had read when it drew",
            )


@check_example("environment")
def the_seed_decides(example: Example) -> None:
    """The same seed gives the same rollout, another seed another one."""
    policy = _policy()
    first, again, other = (rows(_acted(example, policy, seed=seed)) for seed in (1, 1, 2))
    if first != again:
        example.fail("the same seed gives other tokens", "the same ones", "take all randomness from `seed`")
    if first == other:
        example.fail("another seed gives the same tokens", "other ones", "hand `seed` on, or what is derived from it")


@check_example("environment")
def the_rest_of_the_batch_changes_nothing(example: Example) -> None:
    """A part of the prompts with its sample ids gives the rows that it gives among all."""
    policy, prompts = _policy(), _prompts()
    numbers, part = _numbers(len(prompts)), [7, 2, 10]
    together = rows(_acted(example, policy))
    alone = rows(_acted(example, policy, [prompts[i] for i in part], [numbers[i] for i in part]))
    if alone != [together[i] for i in part]:
        example.fail(
            "rows get other tokens without the rest of the batch",
            "tokens that the seed and their sample id decide",
            "hand `sample_ids` on, those of each row",
        )


@check_example("environment")
def leaves_its_inputs_alone(example: Example) -> None:
    """Acting changes neither prompts nor the policy, and draws nothing from torch's own generator."""
    policy, prompts = _policy(), _prompts()
    given = copy.deepcopy(prompts)
    with unmoved(example, policy, "acting", "leave training to the optimizer"):
        _acted(example, policy, prompts)
    if prompts != given:
        example.fail("acting changes the prompts", "inputs left as they are", "make new ones")
