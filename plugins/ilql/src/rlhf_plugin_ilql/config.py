"""Configuration of ILQL; importing it does not import torch."""

from __future__ import annotations

from pydantic import Field
from rlhf_core.interfaces import Needs, OptimizerSettings


class ILQLConfig(OptimizerSettings):
    """Implicit language Q-learning (Snell et al., 2022): offline, from feedback with rewards."""

    batch_size: int = Field(default=32, ge=1, description="responses per update of the weights, over all processes")
    micro_batch_tokens: int = Field(
        default=8192, ge=1, description="most tokens, padding included, in one forward and backward"
    )
    reward_scale: float = Field(
        default=10.0, gt=0, description="reward of the best that feedback can say; of the worst it is 0"
    )
    beta: float = Field(
        default=4.0, ge=0, description="decoding adds so many times the advantage of a token to its log-probability"
    )
    tau: float = Field(
        default=0.7, gt=0.5, lt=1,
        description="expectile of action values that a state is worth: 0.5 would be their mean, towards 1 their best",
    )  # fmt: skip
    gamma: float = Field(default=1.0, gt=0, le=1, description="discount per token")
    target_rate: float = Field(
        default=0.1, gt=0, le=1, description="share by which target heads follow the heads after each update"
    )
    cql_coef: float = Field(
        default=0.1, ge=0, description="weight of the term that holds down the values of tokens that were not taken"
    )
    imitation_coef: float = Field(
        default=5.0,
        gt=0,
        description="weight of the language-model loss on the responses; the other losses move it too",
    )

    @property
    def needs(self) -> Needs:
        return Needs(values=True, heads=2)
