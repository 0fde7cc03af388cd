"""The loss, against numbers worked out by hand."""

import pytest
import torch
from rlhf_core.interfaces import Outputs
from rlhf_core.rl import Batch
from rlhf_core.testing import example_rollout, tiny_context
from rlhf_plugin_gspo.config import GspoOptimizerConfig
from rlhf_plugin_gspo.optimizer import GspoOptimizer


def test_the_ratio_is_of_the_whole_response_and_is_clipped_for_the_better_one_only() -> None:
    """Every token is 0.1 nats likelier, so that each ratio is exp(0.1) = 1.10517, however long the response."""
    rollout = example_rollout().select([0, 1])
    optimizer = GspoOptimizer(GspoOptimizerConfig(clip_low=0.05, clip_high=0.05), tiny_context("optimizer", "gspo"))
    batch = Batch(rollout, {"advantages": torch.tensor([2.0, -1.0])}, token_count=1.0, sample_count=2.0)
    loss, stats = optimizer.loss(batch, Outputs(logprobs=rollout.logprobs + 0.1))
    # the better response gains no more than 2 * 1.05, the worse one loses all of 1.10517
    assert float(loss) == pytest.approx(-(2.1 - 1.10517) / 2, abs=1e-5)
    assert float(stats["policy/ratio"]) == pytest.approx(1.10517, abs=1e-5)
    assert float(stats["policy/clip_fraction"]) == 1.0


def test_responses_are_compared_within_their_group() -> None:
    """Scores 1 and 0 lie one half from their mean, and their deviation is the square root of one half."""
    rollout = example_rollout().select([0, 1])
    rewards = torch.zeros_like(rollout.logprobs)
    rewards[0, 0] = 1.0
    optimizer = GspoOptimizer(GspoOptimizerConfig(), tiny_context("optimizer", "gspo"))
    prepared = optimizer.prepare(rollout.replace(rewards=rewards, groups=torch.tensor([0, 0])))
    assert prepared["advantages"].tolist() == pytest.approx([0.7071, -0.7071], abs=1e-4)
