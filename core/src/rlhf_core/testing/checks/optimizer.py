"""Optimizers: they move the weights, and only for reasons that are in the data.

Which checks apply follows from `traits`, and whether those are true is checked as well, so none is left out by mistake:

    learns_from   padding, junk, order   micro-batches   direction   equal rewards   truncated batch
    on-policy     yes                    yes             yes         as declared     yes
    off-policy    yes, but for order     yes             yes         as declared     yes
    offline       no (reads feedback)    yes             no          no              no
    no gradient   yes                    no              no          as declared     yes
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ...interfaces import Context, Needs, Policy, PolicyOptimizer, Sampling, StepStats, TrainingData, Traits
from ...randomness import seed_everything
from ...records import Feedback, Prompt, Rollout
from ..compare import copied, padded, same, through_checkpoint, weights
from ..kit import check_example
from ..records import example_feedback, example_prompts
from ..rollouts import example_rollout
from ..subjects import Example, NotApplicable
from ..toys import Indifferent, NoOptions, example_data, tiny_context, tiny_policy

TOLERANCE = 1e-10
OF_THE_STEP = ("policy/loss", "policy/grad_norm")  # what the base of on-policy optimizers reports itself
"""In float64, of what a step adds to the weights: the norm of the difference over its own norm. In float32 it is
`Traits.rounding`."""


class Given(TrainingData):
    """One rollout made beforehand, in every step.

    With `policy`, rewards follow its weights, as they do for whoever looks at nothing else: each token is paid its
    log-probability of today.
    """

    def __init__(self, rollout: Rollout, policy: Policy[Any] | None = None) -> None:
        self.given, self.policy, self.step = rollout, policy, 0

    @property
    def sampling(self) -> Sampling:
        return Sampling()

    def prompts(self, count: int) -> list[Prompt]:
        return [example_prompts()[i % 5] for i in range(count)]

    @torch.no_grad()
    def rollout(self, *arguments: Any, **options: Any) -> Rollout:
        sampling = options.get("sampling")
        if self.policy is None and sampling is not None and sampling.heat == 0:
            return self._greedy(len(arguments[0]))
        if self.policy is None:
            return self.given
        logprobs = self.policy.forward(self.given, Needs()).logprobs
        assert self.given.rewards is not None
        return self.given.replace(rewards=self.given.rewards + logprobs.where(self.given.mask, 0.0))

    def _greedy(self, count: int) -> Rollout:
        """So many greedy responses: one token each, worth what samples are worth on average."""
        assert self.given.rewards is not None
        worth = self.given.rewards.sum() / self.given.mask.any(1).sum()
        shortest = self.given.mask.sum(1).where(self.given.mask.any(1), 1_000).argmin()
        one = self.given.select([int(shortest)] * count)
        return one.replace(rewards=worth.expand(count, 1).clone(), sample_ids=torch.arange(count))

    def rescore(self, rollout: Rollout, needs: Needs | None = None) -> Rollout:
        return rollout

    def feedback(self, kind: str | None = None) -> Iterator[Feedback]:
        return (record for record in example_feedback() if kind in (None, record.kind))


def _bound(example: Example, policy: Any, context: Context | None = None) -> PolicyOptimizer[Any]:
    policy.set_reference("stage-start")
    optimizer: PolicyOptimizer[Any] = example.build(**({"dtype": context.dtype} if context else {}))
    optimizer.bind(policy, 4)
    return optimizer


# --- what kind of algorithm it is ------------------------------------------------------------------------------------


def _traits(example: Example) -> Traits:
    try:
        traits = example.build().traits
    except Exception:
        traits = None
    if not isinstance(traits, Traits):
        raise NotApplicable("its traits are not known: see traits_are_true")
    return traits


@check_example("optimizer")
def traits_are_true(example: Example) -> None:
    """It says what it learns from, and a step asks for just that; one without gradient takes none."""
    traits = example.build().traits
    if not isinstance(traits, Traits):
        example.fail(f"traits are {traits!r}", "Traits(learns_from=...)", "declare what kind of algorithm it is")
    policy = tiny_policy()
    optimizer = _bound(example, policy)
    data = example_data(policy, optimizer.config.needs)
    data.begin(0)
    with (
        mock.patch.object(data, "rollout", wraps=data.rollout) as rollouts,
        mock.patch.object(torch.autograd, "backward", wraps=torch.autograd.backward) as backward,
        mock.patch.object(torch.autograd, "grad", wraps=torch.autograd.grad) as grad,
    ):
        optimizer.step(data)
    samples, gradients = rollouts.call_count, backward.call_count + grad.call_count
    if (samples > 0) == (traits.learns_from == "offline"):
        example.fail(
            f"{traits.learns_from!r}, and a step that asks for {samples} rollouts",
            "rollouts, unless it is offline",
            "declare traits as they are",
        )
    if (gradients > 0) != traits.gradient:
        example.fail(
            f"gradient={traits.gradient}, and a step that takes {gradients} gradients",
            "what is declared",
            "declare traits as they are",
        )


# --- what must not change anything -----------------------------------------------------------------------------------

TAME = {"learning_rate": 1.0, "adam_eps": 1.0, "max_grad_norm": 1e6, "target_kl": None, "epochs": 1,
        "minibatch_size": 1_000_000}  # fmt: skip


def precise(example: Example, **changes: Any) -> Example:
    """The same optimizer with AdamW so tame that a step is nearly the gradient: scale is seen, rounding is not.

    All samples are in one update, so that their order may not matter. Options that it does not have are left out.
    """
    fields = example.subject.config_class.model_fields
    return example.with_config(**{name: value for name, value in {**TAME, **changes}.items() if name in fields})


def _movement(example: Example, change: Callable[[Rollout], Rollout] | None = None, dtype: str = "float64") -> Tensor:
    """What a step on one fixed rollout, `change`d before, adds to the weights of a policy."""
    context = tiny_context("policy", dtype=dtype)
    policy = tiny_policy(context, critic="separate")
    optimizer = _bound(example, policy, context)
    rollout = example_rollout(policy, needs=optimizer.config.needs)
    before = weights(policy.module)
    rollout = change(rollout) if change else rollout
    data = Given(rollout, None if optimizer.traits.gradient else policy)
    seed_everything(0)
    optimizer.step(data)
    return weights(policy.module) - before


_PLAIN: dict[tuple[Any, ...], Tensor] = {}


def _plain_movement(example: Example, dtype: str) -> Tensor:
    """`_movement` without a change, kept while one subject is checked: several checks compare with it."""
    key = (example.subject, example.config.model_dump_json(), dtype)
    if key not in _PLAIN:
        for other in [old for old in _PLAIN if old[0] is not example.subject]:
            del _PLAIN[other]
        _PLAIN[key] = _movement(example, None, dtype)
    return _PLAIN[key]


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / a.norm().clamp(min=1e-30))


def _unchanged(example: Example, change: Callable[[Rollout], Rollout], what: str, fix: str) -> None:
    """The step is the same, within rounding, for a changed rollout."""
    for dtype, tolerance in (("float64", TOLERANCE), ("float32", _traits(example).rounding)):
        moved = _distance(_plain_movement(example, dtype), _movement(example, change, dtype))
        if not moved <= tolerance:
            example.fail(f"{what} changes a step by {moved:.2g} of its size in {dtype}", f"at most {tolerance}", fix)


def _samples_needed(example: Example) -> Traits:
    traits = _traits(example)
    if traits.learns_from == "offline":
        raise NotApplicable("it learns from feedback, not from samples")
    return traits


@check_example("optimizer")
def padding_changes_nothing(example: Example) -> None:
    """More columns of padding, left of prompts and right of responses, lead to the same step."""
    _samples_needed(example)
    _unchanged(precise(example), lambda r: padded(r, prompt=2, response=3), "padding",
               "average over the mask, never over T")  # fmt: skip


@check_example("optimizer")
def order_changes_nothing(example: Example) -> None:
    """The samples in another order lead to the same step."""
    if _samples_needed(example).learns_from == "off-policy":
        raise NotApplicable("what is replayed is drawn by place, so the order of samples may matter")
    _unchanged(precise(example), lambda r: r.select([4, 2, 7, 0, 6, 1, 3, 5]), "another order of the samples",
               "compare samples by rollout.groups, not by where they stand")  # fmt: skip


@check_example("optimizer")
def masked_junk_changes_nothing(example: Example) -> None:
    """What stands at masked positions (padding, other speakers, abstained samples) does not matter.

    Rewards are 0 there by contract; everything else may be any finite number.
    """
    _samples_needed(example)
    _unchanged(precise(example), _with_junk, "junk at masked positions",
               "mask before summing: torch.where(batch.mask, x, 0), masked_mean, batch.token_mean")  # fmt: skip


def _with_junk(rollout: Rollout) -> Rollout:
    noise = torch.Generator().manual_seed(9)
    names = ("logprobs", "reference_logprobs", "values", "entropy", "top_logprobs")
    changes = {"response_ids": torch.where(rollout.attention, rollout.response_ids, 7)}
    for name in names:
        tensor: Tensor = getattr(rollout, name)
        mask = rollout.mask.view(*rollout.mask.shape, *[1] * (tensor.dim() - 2))
        junk = -3 * torch.rand(tensor.shape, generator=noise, dtype=torch.float64).to(tensor)
        changes[name] = torch.where(mask, tensor, junk)
    return rollout.replace(**changes)


@check_example("optimizer")
def micro_batches_change_nothing(example: Example) -> None:
    """One sample per forward pass leads to the same step as all in one."""
    if not _traits(example).gradient:
        raise NotApplicable("it takes no gradient")
    if "micro_batch_tokens" not in example.subject.config_class.model_fields:
        raise NotApplicable("its config has no micro_batch_tokens")
    offline = _traits(example).learns_from == "offline"
    for dtype, tolerance in (("float64", TOLERANCE), ("float32", _traits(example).rounding)):
        whole, parts = (_movement(precise(example, micro_batch_tokens=n), None, dtype) for n in (1_000_000, 1))
        if not (moved := _distance(whole, parts)) <= tolerance:
            example.fail(
                f"micro-batches change a step by {moved:.2g} of its size in {dtype}",
                f"at most {tolerance}",
                "divide sums by the counts of the whole step"
                if offline
                else "in loss, use batch.token_mean and batch.sample_mean, or pass denominator=batch.token_count; what "
                "looks at the whole batch belongs in prepare",
            )


@check_example("optimizer")
def statistics_are_shares(example: Example) -> None:
    """Statistics are the same whether a step is computed at once or one sample at a time."""
    if not _traits(example).gradient:
        raise NotApplicable("it takes no gradient")
    if "micro_batch_tokens" not in example.subject.config_class.model_fields:
        raise NotApplicable("its config has no micro_batch_tokens")
    whole, parts = (_statistics(precise(example, micro_batch_tokens=n)) for n in (1_000_000, 1))
    for name in sorted(whole.keys() | parts.keys(), key=lambda name: (name not in OF_THE_STEP, name)):
        a, b = (stats.get(name, math.nan) for stats in (whole, parts))
        if not math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9):
            if name in OF_THE_STEP:
                raise NotApplicable("the step itself differs: see micro_batches_change_nothing")
            example.fail(
                f"statistic {name!r} is {a:.6g}, and {b:.6g} from micro-batches of one sample",
                "the same number",
                "let statistics be shares too: batch.sample_mean(x.detach()), batch.token_mean(x.detach())",
            )


def _statistics(example: Example) -> StepStats:
    """What one step on a fixed rollout reports, in float64."""
    policy = tiny_policy(tiny_context("policy", dtype="float64"), critic="separate")
    policy.set_reference("stage-start")
    optimizer = _bound(example, policy, tiny_context("optimizer", dtype="float64"))
    seed_everything(0)
    return optimizer.step(Given(example_rollout(policy, needs=optimizer.config.needs)))


@check_example("optimizer")
def statistics_have_names_of_their_own(example: Example) -> None:
    """What a step reports hides nothing that the stage logs itself, such as reward/score and policy/entropy."""
    policy = tiny_policy()
    optimizer = _bound(example, policy)
    data = example_data(policy, optimizer.config.needs)
    taken = _steps(optimizer, data, 0, 1).keys() & data.stats.keys()
    if taken:
        example.fail(
            f"its statistics {', '.join(sorted(taken))} have names that the stage logs itself",
            "names of its own",
            f"rename them, for example {example.subject.spec.name}/{min(taken).rpartition('/')[2]}",
        )


# --- which way it goes -----------------------------------------------------------------------------------------------


def _paid(rollout: Rollout, score: Tensor) -> Rollout:
    """The rollout with `score` (B,) as the rewards of last tokens, a critic that expects nothing, and true old
    log-probabilities."""
    last = (rollout.mask.cumsum(1) == rollout.mask.sum(1, keepdim=True)) & rollout.mask
    last = last & (last.cumsum(1) == 1)
    live = rollout.mask.any(1)
    score = score.to(rollout.logprobs).where(live, 0.0)
    assert rollout.values is not None and rollout.bootstrap is not None
    return rollout.replace(
        score=score,
        rewards=score[:, None] * last,
        values=torch.zeros_like(rollout.values),
        bootstrap=torch.zeros_like(rollout.bootstrap),
        scores={},
    )


@check_example("optimizer")
def good_samples_become_likelier_and_bad_ones_less_likely(example: Example) -> None:
    """Tokens of samples that were paid become likelier than they were, those that were charged less likely."""
    traits = _samples_needed(example)
    if not traits.gradient:
        raise NotApplicable("it takes no gradient, and a single step of it may go anywhere")
    careful = precise(example, learning_rate=1e-2, entropy_coef=0.0, kl_coef=0.0)
    for sign in (1.0, -1.0):
        context = tiny_context("policy", dtype="float64")
        policy = tiny_policy(context, critic="separate")
        optimizer = _bound(careful, policy, context)
        rollout = example_rollout(policy, needs=optimizer.config.needs)
        with torch.no_grad():
            before = policy.forward(rollout, Needs()).logprobs
        good = torch.tensor([1.0, -1.0] * 4) * sign  # two samples of each prompt, one good and one bad
        optimizer.step(Given(_paid(rollout.replace(logprobs=before), good)))
        with torch.no_grad():
            gained = (policy.forward(rollout, Needs()).logprobs - before).where(rollout.mask, 0.0).sum(1)  # (B,)
        live = rollout.mask.any(1)
        for name, rows, right in (("paid 1", live & (good > 0), 1), ("charged 1", live & (good < 0), -1)):
            change = float(gained[rows].mean())
            if not change * right > 0:
                example.fail(
                    f"the log-probability of samples that were {name} changes by {change:.2g}",
                    "a rise of what is paid and a fall of what is charged",
                    "look at the sign of the loss: it is minimised",
                )


@check_example("optimizer")
def equal_rewards_change_nothing_if_declared(example: Example) -> None:
    """With a baseline, rewards that are all equal leave the policy as it is; without one they do not."""
    plain = precise(example, entropy_coef=0.0, kl_coef=0.0)
    traits = _samples_needed(plain)
    context = tiny_context("policy", dtype="float64")
    policy = tiny_policy(context, critic="separate")
    optimizer = _bound(plain, policy, context)
    given = example_rollout(policy, needs=optimizer.config.needs)
    # the critic has its own opinion of each token: only what compares samples gets rid of what they have in common
    rollout = _paid(given, torch.ones(8)).replace(values=given.values, bootstrap=given.bootstrap)
    critic = {id(p) for p in policy.value_parameters}
    before = [p.detach().clone() for p in policy.module.parameters()]
    optimizer.step(Given(rollout))
    after = policy.module.parameters()
    moved = (
        sum(float((a.detach() - b).square().sum()) for a, b in zip(after, before, strict=True) if id(a) not in critic)
        ** 0.5
    )
    size = sum(float(b.square().sum()) for b in before) ** 0.5
    still = moved <= 1e-12 * size
    if still != traits.baseline:
        example.fail(
            f"baseline={traits.baseline}, and equal rewards move the policy by {moved / size:.2g} (relative)",
            "a policy that stays as it is" if traits.baseline else "a policy that moves, or baseline=True",
            "subtract what the samples have in common" if traits.baseline else "declare traits as they are",
        )


@check_example("optimizer")
def a_truncated_batch_is_finite(example: Example) -> None:
    """A step in which every response hit the length limit leaves everything finite."""
    _samples_needed(example)
    policy = tiny_policy(critic="separate")
    optimizer = _bound(example, policy)
    rollout = example_rollout(policy, needs=optimizer.config.needs)
    try:
        stats = optimizer.step(Given(rollout.replace(truncated=torch.ones_like(rollout.truncated))))
    except Exception as error:
        example.fail(
            f"a batch of truncated responses raises {type(error).__name__}: {error}",
            "a step like any other",
            "nothing may divide by the number of responses that ended",
        )
    _check_finite(example, policy, stats, "a batch of truncated responses")


# --- what a step does ------------------------------------------------------------------------------------------------


def _steps(optimizer: PolicyOptimizer[Any], data: Any, first: int, count: int) -> StepStats:
    """Steps as the runner takes them; the statistics of the last one."""
    stats: StepStats = {}
    for step in range(first, first + count):
        seed_everything(step)
        data.begin(step)
        stats = dict(optimizer.step(data))
    return stats


def _check_finite(example: Example, policy: Any, stats: StepStats, when: str) -> None:
    if not bool(weights(policy.module).isfinite().all()):
        example.fail(f"weights that are not finite after {when}", "finite weights", "guard the division")
    for name, value in stats.items():
        if type(value) not in (int, float, bool) or not abs(value) < float("inf"):
            example.fail(
                f"statistic {name!r} is {value!r} after {when}",
                "a finite Python number",
                "return numbers, and guard the division",
            )


@check_example("optimizer")
def a_step_changes_weights_and_stays_finite(example: Example) -> None:
    """Two steps on a tiny policy move its weights; weights and statistics stay finite."""
    policy = tiny_policy()
    optimizer = _bound(example, policy)
    before = weights(policy.module)
    stats = _steps(optimizer, example_data(policy, optimizer.config.needs), 0, 2)
    _check_finite(example, policy, stats, "two steps")
    after = weights(policy.module)
    if torch.equal(before, after):
        example.fail(
            "two steps leave all weights as they were",
            "a policy that learns",
            "let the loss depend on new.logprobs, and groups have several samples",
        )


@check_example("optimizer")
def leaves_its_inputs_alone(example: Example) -> None:
    """A step changes nothing in the rollout that it is given."""
    _samples_needed(example)
    policy = tiny_policy(critic="separate")
    optimizer = _bound(example, policy)
    rollout = example_rollout(policy, needs=optimizer.config.needs)
    before = copied(rollout.tensors())
    optimizer.step(Given(rollout))
    changed = [name for name, tensor in rollout.tensors().items() if not same(before[name], tensor)]
    if changed:
        example.fail(
            f"a step changes {', '.join(changed)} of the rollout",
            "inputs left as they are",
            "write x = x * y, not x *= y",
        )


@check_example("optimizer")
def an_abstained_batch_is_harmless(example: Example) -> None:
    """A step in which the reward has no opinion on any sample leaves everything finite."""
    _samples_needed(example)
    policy = tiny_policy()
    optimizer = _bound(example, policy)
    reward = Indifferent(NoOptions(), tiny_context("reward", "indifferent"))
    try:
        stats = _steps(optimizer, example_data(policy, optimizer.config.needs, reward=reward), 0, 1)
    except Exception as error:
        example.fail(
            f"a batch of abstained samples raises {type(error).__name__}: {error}",
            "a step that does nothing",
            "masks may be empty",
        )
    _check_finite(example, policy, stats, "a batch of abstained samples")


@check_example("optimizer")
def continues_after_a_checkpoint(example: Example) -> None:
    """An optimizer that was saved and loaded goes on bit for bit as one that was not."""
    straight, saved = _run(example, None)
    resumed, _ = _run(example, saved)
    if not same(straight, resumed):
        example.fail(
            f"after loading its state the next step differs by {_distance(straight, resumed):.2g} (relative)",
            "the same weights, bit for bit",
            "put everything that changes into state_dict",
        )


def _run(example: Example, saved: dict[str, Any] | None) -> tuple[Tensor, dict[str, Any]]:
    """Weights after step 1, and the state before it: from the beginning, or from what was saved there."""
    policy = tiny_policy()
    optimizer = _bound(example, policy)  # both begin from equal weights, so the reference is the same
    data = example_data(policy, optimizer.config.needs)
    parts: dict[str, Any] = {"policy": policy, "optimizer": optimizer, "data": data}
    if saved is None:
        _steps(optimizer, data, 0, 1)
        saved = through_checkpoint({name: part.state_dict() for name, part in parts.items()})
    else:
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    _steps(optimizer, data, 1, 1)
    return weights(policy.module), saved
