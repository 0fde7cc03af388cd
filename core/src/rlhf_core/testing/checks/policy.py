"""Policies: what they sample is what they score, whatever surrounds it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...interfaces import Needs, Policy, Sampling, SupervisedConfig
from ...records import Demonstration, Rollout, Sample
from ...training import fit_task
from ..compare import copied, difference, nudge, padded, same, through_checkpoint
from ..kit import check_example
from ..records import example_feedback, example_prompts, example_samples
from ..rollouts import shortened
from ..subjects import Example

SAMPLING = Sampling(max_new_tokens=8)


def _trained(example: Example, seed: int = 0) -> Policy[Any]:
    """The policy after something has moved its weights."""
    policy: Policy[Any] = example.build()
    _train(policy, seed)
    return policy


def _train(policy: Policy[Any], seed: int) -> None:
    nudge(policy.module, seed)
    policy.weights_changed()


@torch.no_grad()
def _logprobs(policy: Policy[Any], rollout: Rollout) -> Tensor:
    return policy.forward(rollout, Needs()).logprobs


def _reference(policy: Policy[Any], rollout: Rollout) -> Tensor:
    with policy.as_reference():
        return _logprobs(policy, rollout)


@check_example("policy")
def left_padding_changes_nothing(example: Example) -> None:
    """Columns of padding left of the prompts leave the log-probabilities as they are."""
    policy = _trained(example)
    rollout = policy.generate(example_prompts(), SAMPLING, seed=1)
    moved = difference(_logprobs(policy, rollout), _logprobs(policy, padded(rollout, prompt=3)))
    if not moved <= policy.rounding:
        example.fail(
            f"three columns of padding move log-probabilities by up to {moved:.2g}",
            f"at most {policy.rounding}",
            "count positions over real tokens only, and pass prompt_mask on",
        )


@check_example("policy")
def batch_changes_nothing(example: Example) -> None:
    """A response has the same log-probabilities alone as among others of other lengths."""
    policy = _trained(example)
    rollout = policy.generate(example_prompts()[:1] * 3, SAMPLING, seed=1, sample_ids=[0, 1, 2])
    rollout = shortened(rollout, (3, 8, 5))
    together = _logprobs(policy, rollout)
    for row in range(3):
        alone = _logprobs(policy, rollout.select([row]))[0]
        moved = difference(together[row, : len(alone)], alone)
        if not moved <= policy.rounding:
            example.fail(
                f"the log-probabilities of a response differ by up to {moved:.2g} alone and among others",
                f"at most {policy.rounding}",
                "let no row see another, and mask padding",
            )


@check_example("policy")
def sampled_logprobs_equal_rescored_ones(example: Example) -> None:
    """The log-probabilities that `generate` records are those that `forward` gives, at any temperature."""
    policy = _trained(example)
    for temperature in (1.0, 0.7):
        sampling = SAMPLING.model_copy(update={"temperature": temperature})
        rollout = policy.generate(example_prompts(), sampling, seed=2)
        moved = difference(rollout.logprobs, _logprobs(policy, rollout))
        if not moved <= policy.rounding:
            example.fail(
                f"at temperature {temperature} recorded and rescored log-probabilities differ by up to {moved:.2g}",
                f"at most {policy.rounding}",
                "take both over the full softmax at the temperature, which the rollout carries along",
            )


@check_example("policy")
def reference_is_the_policy_at_stage_start(example: Example) -> None:
    """After set_reference("stage-start") the reference is the policy, and stays it while the policy moves on."""
    policy = _trained(example)
    rollout = policy.generate(example_prompts(), SAMPLING, seed=3)
    policy.set_reference("stage-start")
    start = _logprobs(policy, rollout)
    if (moved := difference(start, _reference(policy, rollout))) > policy.rounding:
        example.fail(
            f"at stage start the reference differs from the policy by {moved:.2g}",
            f"at most {policy.rounding}",
            "copy today's trainable weights in set_reference",
        )
    _train(policy, seed=1)
    now = _logprobs(policy, rollout)
    if (moved := difference(start, _reference(policy, rollout))) > policy.rounding:
        example.fail(
            f"the reference moves by {moved:.2g} when the policy is trained",
            "a reference that stays",
            "keep a copy of the weights, not the weights themselves",
        )
    if (moved := difference(now, _logprobs(policy, rollout))) > policy.rounding:
        example.fail(
            f"the policy differs by {moved:.2g} after as_reference()",
            "the policy as it was",
            "put its weights back, whatever happens inside",
        )


@check_example("policy")
def reference_survives_a_resume(example: Example) -> None:
    """What save_reference writes, set_reference reads: a resumed run has the reference of the interrupted one."""
    policy = _trained(example)
    policy.set_reference("stage-start")
    _train(policy, seed=1)
    rollout = policy.generate(example_prompts(), SAMPLING, seed=4)
    resumed = example.build()
    with tempfile.TemporaryDirectory(prefix="rlhf-conformance-") as folder:
        policy.save_reference(Path(folder, "reference"))
        resumed.load_state_dict(through_checkpoint(policy.state_dict()))
        resumed.set_reference(str(Path(folder, "reference")))
    if (moved := difference(_reference(policy, rollout), _reference(resumed, rollout))) > policy.rounding:
        example.fail(
            f"a reference that was saved and loaded differs by {moved:.2g}",
            "the reference that was saved",
            "write the reference's weights in save_reference, not the policy's",
        )


@check_example("policy")
def continues_after_a_checkpoint(example: Example) -> None:
    """A policy that was saved and loaded gives the same log-probabilities, bit for bit."""
    policy = _trained(example)
    resumed = example.build()
    resumed.load_state_dict(through_checkpoint(policy.state_dict()))
    resumed.weights_changed()
    rollout = policy.generate(example_prompts(), SAMPLING, seed=5)
    expected, got = _logprobs(policy, rollout), _logprobs(resumed, rollout)
    if not same(expected, got):
        example.fail(
            f"after loading its state log-probabilities differ by {difference(expected, got):.2g}",
            "the same, bit for bit",
            "put all trainable weights into state_dict",
        )


@check_example("policy")
def leaves_its_inputs_alone(example: Example) -> None:
    """Evaluating a rollout and encoding samples change nothing in them."""
    policy = _trained(example)
    rollout = policy.generate(example_prompts()[:2], SAMPLING, seed=6)
    before = copied(rollout.tensors())
    samples, untouched = (example_samples()[:3] for _ in range(2))
    policy.forward(rollout, Needs(entropy=True))
    policy.encode(samples)
    changed = [name for name, tensor in rollout.tensors().items() if not same(before[name], tensor)]
    if changed or samples != untouched:
        example.fail(
            f"it changes {', '.join(changed) or 'samples'} of what it is given",
            "inputs left as they are",
            "write x = x * y, not x *= y",
        )


@check_example("policy")
def demonstrations_are_imitated(example: Example) -> None:
    """A few supervised steps on demonstrations make their responses likelier."""
    policy: Policy[Any] = example.build()
    shown = [record for record in example_feedback() if isinstance(record, Demonstration)]
    samples = [Sample(record.prompt, record.response) for record in shown]
    before = float(policy.encode(samples).logprobs.sum())
    config = SupervisedConfig(epochs=4, batch_size=len(shown), learning_rate=1e-2)
    fit_task(policy.demonstrations(shown, held_out=0.0), config, policy.context)
    policy.weights_changed()
    after = float(policy.encode(samples).logprobs.sum())
    if not after > before:
        example.fail(
            f"four steps on {len(shown)} demonstrations move their log-probability from {before:.4g} to {after:.4g}",
            "a higher one",
            "let the loss of the task be minus the log-probability of response tokens",
        )


@check_example("policy")
def export_agrees(example: Example) -> None:
    """Exported and loaded by transformers alone, the model gives the policy's log-probabilities, within `rounding`."""
    policy = _trained(example)
    rollout = policy.generate(example_prompts()[:3], SAMPLING, seed=7)
    with tempfile.TemporaryDirectory(prefix="rlhf-conformance-") as folder:
        policy.export(Path(folder))
        plain = _plain_logprobs(policy, Path(folder), rollout)
    moved = difference(_logprobs(policy, rollout), plain)
    if not moved <= policy.rounding:
        made = f" (it was made from {policy.exported_from})" if policy.exported_from else ""
        example.fail(
            f"the exported model's log-probabilities differ by up to {moved:.2g}{made}",
            f"at most {policy.rounding}",
            "export the weights of now, with adapters merged; or declare a wider `rounding`",
        )


@torch.no_grad()
def _plain_logprobs(policy: Policy[Any], folder: Path, rollout: Rollout) -> Tensor:
    """The rollout's log-probabilities (B, T), 0 in padding, by the model in `folder`; row by row, without padding."""
    import transformers

    head = getattr(transformers, f"AutoModelFor{policy.auto_head}")
    model = head.from_pretrained(folder, dtype=torch.float32).eval()
    found = torch.zeros(rollout.logprobs.shape)
    for row in range(len(rollout)):
        prompt = rollout.prompt_ids[row][rollout.prompt_mask[row]][None].cpu()
        response = rollout.response_ids[row][rollout.attention[row]][None].cpu()
        if model.config.is_encoder_decoder:
            logits = model(input_ids=prompt, labels=response).logits
        else:
            logits = model(input_ids=torch.cat([prompt, response], 1)).logits[:, prompt.shape[1] - 1 : -1]
        logprobs = logits.log_softmax(-1).gather(2, response[..., None])[0, :, 0]
        found[row, : len(logprobs)] = logprobs
    return found
