"""Interfaces: abstract classes, configuration, component specs and hooks.

Importing them does not import torch; each name loads its module at first use, so that a plugin that is only listed
costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import attributes

if TYPE_CHECKING:
    from .clock import PHASES, Clock
    from .components import (
        Component,
        Environment,
        FeedbackSource,
        Metric,
        OnlineReward,
        Outputs,
        Policy,
        PolicyOptimizer,
        PromptSource,
        RewardModel,
        RewardShaper,
        State,
        StepStats,
        TrainingData,
        Traits,
    )
    from .config import (
        Config,
        EngineRef,
        EnvironmentRef,
        FeedbackRef,
        FunctionRef,
        MetricRef,
        ModelName,
        MonitorRef,
        Needs,
        OptimizerRef,
        OptimizerSettings,
        PolicyRef,
        PromptsRef,
        RefTo,
        RelativePath,
        RewardRef,
        Sampling,
        ShaperRef,
        SourceConfig,
        StageConfig,
        SupervisedConfig,
        Until,
        references,
    )
    from .context import Context
    from .deprecation import Renamed, Retired
    from .generator import Drawn, Generator
    from .monitor import Monitor, Observation
    from .rows import ABOUT, Row, RowFeedback, described, read_rows
    from .schedule import Schedule, Scheduled, value_at, within
    from .specs import API_VERSION, ComponentSpec, Hooks, KindSpec, hookimpl, hookspec
    from .stage import Run, Stage
    from .supervised import LossSum, SupervisedTask

_NAMES = {
    "clock": ["PHASES", "Clock"],
    "components": [
        "Component", "Environment", "FeedbackSource", "Metric", "OnlineReward", "Outputs", "Policy",
        "PolicyOptimizer", "PromptSource", "RewardModel", "RewardShaper", "State", "StepStats",
        "TrainingData", "Traits",
    ],
    "config": [
        "Config", "EngineRef", "EnvironmentRef", "FeedbackRef", "FunctionRef", "MetricRef", "ModelName", "MonitorRef",
        "Needs", "OptimizerRef", "OptimizerSettings", "PolicyRef", "PromptsRef", "RefTo", "RelativePath", "RewardRef",
        "Sampling", "ShaperRef", "SourceConfig", "StageConfig", "SupervisedConfig", "Until", "references",
    ],
    "context": [
        "Context",
    ],
    "deprecation": ["Renamed", "Retired"],
    "generator": ["Drawn", "Generator"],
    "monitor": ["Monitor", "Observation"],
    "rows": [
        "ABOUT", "Row", "RowFeedback", "described", "read_rows",
    ],
    "schedule": ["Schedule", "Scheduled", "value_at", "within"],
    "specs": [
        "API_VERSION", "ComponentSpec", "Hooks", "KindSpec", "hookimpl", "hookspec",
    ],
    "stage": ["Run", "Stage"],
    "supervised": ["LossSum", "SupervisedTask"],
}  # fmt: skip
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "ABOUT", "API_VERSION", "Clock", "Component", "ComponentSpec", "Config", "Context", "Drawn", "EngineRef",
    "Environment", "EnvironmentRef", "FeedbackRef", "FeedbackSource", "FunctionRef", "Generator", "Hooks",
    "KindSpec", "LossSum", "Metric", "MetricRef", "ModelName", "Monitor", "MonitorRef", "Needs", "Observation",
    "OnlineReward", "OptimizerRef", "OptimizerSettings", "Outputs", "PHASES", "Policy", "PolicyOptimizer",
    "PolicyRef", "PromptSource", "PromptsRef", "RefTo", "RelativePath", "Renamed", "Retired", "RewardModel",
    "RewardRef", "RewardShaper", "Row", "RowFeedback", "Run", "Sampling", "Schedule", "Scheduled", "ShaperRef",
    "SourceConfig", "Stage", "StageConfig", "State", "StepStats", "SupervisedConfig", "SupervisedTask",
    "TrainingData", "Traits", "Until", "described", "hookimpl", "hookspec", "read_rows", "references",
    "value_at", "within",
]  # fmt: skip

__getattr__ = attributes(__name__, _MODULES)
