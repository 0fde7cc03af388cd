"""Wrong policies. Each fails one check, and what it derives from fails none."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from rlhf_core.interfaces import Needs
from rlhf_core.policies.causal_lm import CausalLM


class Shifted(CausalLM):
    """Log-probabilities with something added, the same when sampling and scoring."""

    def shift(self, rollout):
        raise NotImplementedError

    def forward(self, rollout, needs):
        out = super().forward(rollout, needs)
        return replace(out, logprobs=out.logprobs + self.shift(rollout) * rollout.attention)

    @torch.no_grad()
    def generate(self, *arguments, **options):
        rollout = super().generate(*arguments, **options)
        return rollout.replace(logprobs=self.forward(rollout, Needs()).logprobs)


class SeesPadding(Shifted):
    def shift(self, rollout):
        unused = rollout.prompt_ids.shape[1] - int(rollout.prompt_mask.sum(1).max())
        return 0.01 * unused


class SeesOthers(Shifted):
    def shift(self, rollout):
        return 0.01 * (len(rollout) == 1)


class SaysItIsCoarse(SeesOthers):
    """Right, since it says how much it rounds."""

    rounding = 0.02


class ForgetsTemperature(CausalLM):
    def forward(self, rollout, needs):
        return super().forward(rollout.replace(temperature=1.0), needs)


class ReferenceFollows(CausalLM):
    @contextmanager
    def as_reference(self):
        yield


class SavesItselfAsReference(CausalLM):
    def save_reference(self, directory):
        reference = self._reference
        self.set_reference("stage-start")
        super().save_reference(directory)
        self._reference = reference


class DropsAWeight(CausalLM):
    def state_dict(self):
        state = super().state_dict()
        return {**state, "weights": dict(list(state["weights"].items())[1:])}

    def load_state_dict(self, state):
        whole = super().state_dict()
        super().load_state_dict({**state, "weights": {**whole["weights"], **state["weights"]}})


class TakesTheGlobalSeed(CausalLM):
    def generate(self, *arguments, seed, **options):
        return super().generate(*arguments, seed=seed + torch.initial_seed() % 1000, **options)


class CallsNothingTruncated(CausalLM):
    def forward(self, rollout, needs):
        rollout.truncated.fill_(False)
        return super().forward(rollout, needs)


class ExportsTheBeginning(CausalLM):
    def export(self, directory, *, adapters=False):
        CausalLM(self.config, self.context).export(directory, adapters=adapters)


class Unlearns(CausalLM):
    def demonstrations(self, records, *, held_out):
        task = super().demonstrations(records, held_out=held_out)
        loss = task.loss

        def upside_down(examples):
            found = loss(examples)
            return replace(found, total=-found.total)

        task.loss = upside_down
        return task


class AlwaysFloat(CausalLM):
    def __init__(self, config, context):
        super().__init__(config, replace(context, dtype="float32"))


RIGHT: list[tuple[str, type[Any]]] = [("policy", SaysItIsCoarse)]  # `causal-lm` is tested with all that is installed
MUTANTS: list[tuple[str, type[Any], str, str]] = [
    ("policy", SeesPadding, "left_padding_changes_nothing", "three columns of padding move log-probabilities by up to 0.03"),
    ("policy", SeesOthers, "batch_changes_nothing", "differ by up to 0.01 alone and among others"),
    ("policy", ForgetsTemperature, "sampled_logprobs_equal_rescored_ones", "at temperature 0.7 recorded and rescored"),
    ("policy", ReferenceFollows, "reference_is_the_policy_at_stage_start", "when the policy is trained"),
    ("policy", SavesItselfAsReference, "reference_survives_a_resume", "not the policy's"),
    ("policy", DropsAWeight, "continues_after_a_checkpoint", "put all trainable weights into state_dict"),
    ("policy", TakesTheGlobalSeed, "same_seed_same_output", "once the global generators were seeded anew"),
    ("policy", CallsNothingTruncated, "leaves_its_inputs_alone", "it changes truncated of what it is given"),
    ("policy", Unlearns, "demonstrations_are_imitated", "four steps on 5 demonstrations move their log-probability from"),
    ("policy", ExportsTheBeginning, "export_agrees", "the exported model's log-probabilities differ by up to"),
    ("policy", AlwaysFloat, "works_in_its_dtype", "is torch.float32 on cpu in float64 on cpu; expected"),
]  # fmt: skip
