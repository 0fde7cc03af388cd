"""The settings of a pipeline."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ..interfaces.config import Config, RefTo


class PipelineSettings(Config):
    """What a pipeline does, and how.

    Once resolved, `stages` hold every setting of every stage, and `extends` and `override` are applied and gone.
    """

    description: str = Field(default="", description="one line for lists of pipelines")
    seed: int = Field(default=0, ge=0, description="all randomness of a run is derived from it")
    policy: Annotated[str, RefTo("policy")] = Field(description="the policy that is trained and evaluated")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="of forward and backward passes; auto: bf16 where the hardware is fast at it",
    )
    dtype: Literal["float32", "bfloat16", "float64"] = Field(default="float32", description="of the parameters")
    device: str = Field(
        default="auto",
        pattern=r"^[a-z]+(:\d+)?$",
        description="auto takes an accelerator if there is one; or cpu, cuda, cuda:1, mps",
    )
    trackers: tuple[str, ...] = Field(default=(), description="where metrics go besides the log: tensorboard, ...")
    checkpoint_every: int = Field(default=50, ge=0, description="steps between checkpoints; 0: only when a stage ends")
    keep_checkpoints: int = Field(default=2, ge=1, description="older ones are deleted")
    stages: tuple[dict[str, dict[str, Any]], ...] = Field(
        default=(), description="in order: `name: {settings}`, or just the name"
    )
    extends: str | None = Field(default=None, description="a pipeline whose settings this one starts from; one level")
    override: dict[str, Any] = Field(
        default_factory=dict, description="path -> value, as in --set: stages.ID.KEY, KIND.ID.KEY or a setting"
    )


NOT_SETTABLE = ("extends", "override")
"""Settings that say how others come about: no override reaches them, and a resolved pipeline has none."""
