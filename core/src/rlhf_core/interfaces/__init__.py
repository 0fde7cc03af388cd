"""Interfaces: abstract classes, configuration, component specs and hooks. Importing them does not import torch."""

from .components import (
    Component,
    Environment,
    FeedbackSource,
    LossSum,
    Metric,
    OnlineReward,
    Outputs,
    Policy,
    PolicyOptimizer,
    PromptSource,
    RewardModel,
    RewardShaper,
    Run,
    Stage,
    State,
    StepStats,
    SupervisedTask,
    TrainingData,
)
from .config import (
    Config,
    ModelName,
    Needs,
    OptimizerSettings,
    Ref,
    RelativePath,
    Sampling,
    SourceConfig,
    StageConfig,
    SupervisedConfig,
    Until,
    references,
)
from .context import Context
from .rows import Row, RowFeedback, read_rows
from .specs import API_VERSION, ComponentSpec, Hooks, KindSpec, hookimpl, hookspec

__all__ = [
    "API_VERSION", "Component", "ComponentSpec", "Config", "Context", "Environment", "FeedbackSource", "Hooks",
    "KindSpec", "LossSum", "Metric", "ModelName", "Needs", "OnlineReward", "OptimizerSettings", "Outputs", "Policy",
    "PolicyOptimizer", "PromptSource", "Ref", "RelativePath", "RewardModel", "RewardShaper", "Row", "RowFeedback", "Run", "Sampling",
    "SourceConfig", "Stage", "StageConfig", "State", "StepStats", "SupervisedConfig", "SupervisedTask", "TrainingData", "Until", "hookimpl", "hookspec",
    "read_rows", "references",
]  # fmt: skip
