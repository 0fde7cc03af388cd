"""registry.yaml against a catalogue of small configs: resolving, overrides, secrets, errors, schema."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field, model_validator
from rlhf_core.errors import PluginError, RegistryErrors, RLHFError, did_you_mean
from rlhf_core.interfaces import (
    ComponentSpec,
    Config,
    KindSpec,
    ModelName,
    OptimizerSettings,
    RelativePath,
    Sampling,
    StageConfig,
)
from rlhf_core.interfaces.config import RefTo
from rlhf_core.plugins import load_plugins
from rlhf_core.registry import Catalogue, FunctionDecl, Registry, ResolvedPipeline, json_schema
from rlhf_core.registry.reader import parse
from ruamel.yaml import YAML

Reward = Annotated[str, RefTo("reward")]
Feedback = Annotated[str, RefTo("feedback")]
Shaper = Annotated[str, RefTo("shaper")]
Optimizer = Annotated[str, RefTo("optimizer")]
Prompts = Annotated[str, RefTo("prompts")]
MetricRef = Annotated[str, RefTo("metric")]
Function = Annotated[str, RefTo("function")]


class Empty(Config):
    """No settings."""


class CausalLMConfig(Config):
    """A language model."""

    model: ModelName = Field(description="path or hub id")
    lora: bool = Field(False, description="train adapters")
    revision: str | None = Field(None, description="commit or tag")


class FileConfig(Config):
    """Rows of a file."""

    path: RelativePath = Field(description="a JSONL file")
    limit: int | None = Field(None, ge=1, description="read at most this many rows")


class PreferenceConfig(OptimizerSettings):
    """A reward learnt from comparisons."""

    model: ModelName = Field(description="path or hub id")
    epochs: int = Field(1, ge=1, description="passes over the examples")


class KeywordsConfig(Config):
    """Counts words."""

    prefer: tuple[str, ...] = Field((), description="words that are rewarded")
    avoid: tuple[str, ...] = Field((), description="words that are punished")
    scale: Literal["linear", "log"] = Field("linear", description="of the counts")
    rules: list[Sampling] = Field(default_factory=list, description="made up, to have a list of models")


class MixConfig(Config):
    """A reward made of rewards."""

    rewards: dict[Reward, float] = Field(description="id -> weight")


class JudgeConfig(Config):
    """A reward that asks a service."""

    api_key: str = Field(description="from the service")
    url: str = Field("https://judge.example", description="of the service")
    cache: RelativePath | None = Field(None, description="folder of answers")
    timeout: float = Field(10.0, gt=0, description="seconds")
    retries: int = Field(2, ge=0, description="after failures")
    headers: dict[str, str] = Field(default_factory=dict, description="of every request")
    tags: list[str] = Field(default_factory=list, description="for the bill")
    greeting: str = Field("", description="derived from the key")

    @model_validator(mode="before")
    @classmethod
    def _greet(cls, data: Any) -> Any:
        return {**data, "greeting": f"hello {data['api_key']}"} if data.get("tags") == ["greet"] else data

    @model_validator(mode="after")
    def _known(self) -> JudgeConfig:
        if self.api_key.startswith("bad"):
            raise ValueError(f"the service does not know the key {self.api_key}")
        if self.api_key.startswith("crash"):
            raise KeyError(self.api_key)
        return self


class FunctionConfig(Config):
    """A Python function."""

    function: Function = Field(description="its name in `functions:`")


class KLConfig(Config):
    """A penalty."""

    coef: float = Field(0.05, ge=0, description="weight of the penalty")
    estimator: Literal["k1", "k2", "k3"] = Field("k1", description="of the divergence")
    lam: float = Field(0.95, alias="lambda", description="its name is a Python keyword")


class PPOConfig(OptimizerSettings):
    """PPO."""

    clip: float = Field(0.2, gt=0, description="range of the ratio")
    sampling: Sampling = Field(Sampling(), description="how responses are drawn")
    parts: list[Sampling] | dict[str, Sampling] | None = Field(None, description="made up, to have a union")


class FitRewardConfig(StageConfig):
    """Fit a reward."""

    reward: Reward = Field(description="the one that learns")
    feedback: tuple[Feedback, ...] = Field(min_length=1, description="what it learns from")


class OptimizeConfig(StageConfig):
    """Improve the policy."""

    optimizer: Optimizer = Field(description="the algorithm")
    prompts: Prompts | None = Field(None, description="what responses are sampled for")
    rewards: dict[Reward, float] = Field(default_factory=dict, description="id -> weight")
    shapers: tuple[Shaper, ...] = Field((), description="in order")
    steps: int = Field(100, ge=1, description="optimizer steps")
    sampling: Sampling = Field(Sampling(), description="how responses are drawn")


class EvaluateConfig(StageConfig):
    """Measure the policy."""

    prompts: Prompts | None = Field(None, description="what responses are sampled for")
    metrics: tuple[MetricRef, ...] = Field((), description="what is measured")


CONFIGS: dict[str, dict[str, type[Config]]] = {
    "policy": {"causal-lm": CausalLMConfig},
    "feedback": {"preference": FileConfig},
    "prompts": {"jsonl": FileConfig},
    "reward": {"preference": PreferenceConfig, "keywords": KeywordsConfig, "mix": MixConfig, "judge": JudgeConfig,
               "function": FunctionConfig},
    "shaper": {"kl": KLConfig, "whiten": Empty},
    "optimizer": {"ppo": PPOConfig, "reinforce": OptimizerSettings},
    "metric": {"reward": Empty, "kl": Empty, "length": Empty},
    "stage": {"fit-reward": FitRewardConfig, "optimize": OptimizeConfig, "evaluate": EvaluateConfig},
}  # fmt: skip
ELSEWHERE = {("optimizer", "acer"): "rlhf-plugin-acer"}


class FakeCatalogue:
    """Stands in for `rlhf_core.plugins.Plugins`; `imported` lists the configs that were asked for."""

    def __init__(self, configs: dict[str, dict[str, Any]] | None = None) -> None:
        self.configs = configs or CONFIGS
        self.kinds = {kind: KindSpec(kind, "x:Y", f"a {kind}") for kind in self.configs}
        self.imported: list[str] = []

    def find(self, kind: str, name: str) -> ComponentSpec:
        if name in self.configs.get(kind, {}):
            return ComponentSpec(kind, name, "x:Y", f"x:{name}", f"the {name} {kind}")
        where = f"{kind} {name!r}"
        if distribution := ELSEWHERE.get((kind, name)):
            got = f"belongs to {distribution}, which is not installed"
            raise PluginError(where, got, fix=f"pip install {distribution}")
        raise PluginError(where, "no installed plugin offers it", fix=did_you_mean(name, self.names(kind)))

    def names(self, kind: str) -> list[str]:
        return sorted(self.configs[kind])

    def import_class(self, spec: ComponentSpec, role: Literal["factory", "config"]) -> Any:
        self.imported.append(spec.name)
        config = self.configs[spec.kind][spec.name]
        if isinstance(config, Exception):
            raise config
        return config


DESIGN = """\
# yaml-language-server: $schema=./registry.schema.json
schema_version: 1
requires: ["rlhf-core>=0.1"]
components:
  policy:
    desk-lm: {use: causal-lm, config: {model: examples/models/desk-lm}}
  feedback:
    desk-comparisons: {use: preference, config: {path: examples/data/desk_comparisons.jsonl}}
  prompts:
    desk: {use: jsonl, config: {path: examples/data/desk_prompts.jsonl}}
    desk-held-out: {use: jsonl, config: {path: examples/data/desk_held_out.jsonl}}
  reward:
    helpful: {use: preference, config: {model: examples/models/desk-lm, epochs: 2}}
    polite:  {use: keywords, config: {prefer: [please, thanks], avoid: [stupid]}}
  shaper:
    kl: {use: kl, config: {coef: 0.05, estimator: k1}}
    whiten: {use: whiten}
  optimizer:
    ppo: {use: ppo, config: {learning_rate: 3e-4, clip: 0.2}}
pipelines:
  quickstart:
    seed: 0
    policy: desk-lm
    stages:
      - fit-reward: {reward: helpful, feedback: [desk-comparisons]}
      - optimize: {optimizer: ppo, prompts: desk, rewards: {helpful: 1.0, polite: 0.2}, shapers: [kl, whiten], steps: 6}
      - evaluate: {prompts: desk-held-out, metrics: [reward, kl, length]}
  quickstart-reinforce:
    extends: quickstart
    override: {stages.optimize.optimizer: reinforce}
"""
"""The file of the design document."""


# --- helpers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Registry]:
    """Makes a registry of a text, which is line 1 on of its file."""

    def load(text: str, catalogue: FakeCatalogue | None = None) -> Registry:
        path = tmp_path / "registry.yaml"
        path.write_text(text, encoding="utf-8")
        return Registry.load(path, catalogue or FakeCatalogue())

    return load


def texts(errors: Any) -> list[str]:
    """One line per error, without the folder of the file."""
    lines = [str(error) for error in errors]
    return [line[line.index("registry.yaml") :] if "registry.yaml" in line else line for line in lines]


def errors_of(action: Callable[..., Any], *arguments: Any) -> list[str]:
    """What `action` raises."""
    try:
        action(*arguments)
    except RegistryErrors as errors:
        return texts(errors.errors)
    return []


def config(resolved: ResolvedPipeline, which: str | int) -> Any:
    """The config of a component by ``kind.id``, or of a stage by number."""
    if isinstance(which, int):
        return resolved.stages[which].config
    kind, _, id = which.partition(".")
    return resolved.components[kind, id].config


def pipeline(stages: str, components: str = "", **more: str) -> str:
    """A file with one pipeline p, whose stages are the last line."""
    extra = "".join(f"{key}: {value}\n" for key, value in more.items())
    return (
        f"schema_version: 1\n{extra}components:\n  policy: {{lm: {{use: causal-lm, config: {{model: m}}}}}}\n"
        f"{components}pipelines:\n  p:\n    policy: lm\n    stages: {stages}\n"
    )


# --- resolving -------------------------------------------------------------------------------------------------------


def test_the_file_of_the_design_resolves(load: Callable[..., Registry]) -> None:
    registry = load(DESIGN)
    assert registry.problems() == registry.validate() == []
    assert registry.pipelines == ["quickstart", "quickstart-reinforce"]
    resolved = registry.resolve("quickstart")
    assert [(stage.id, stage.name) for stage in resolved.stages] == [
        ("fit-reward", "fit-reward"), ("optimize", "optimize"), ("evaluate", "evaluate"),
    ]  # fmt: skip
    assert resolved.settings.policy == "desk-lm"
    assert (resolved.settings.precision, resolved.settings.device, resolved.settings.checkpoint_every) == (
        "auto",
        "auto",
        50,
    )
    assert set(resolved.components) == {
        ("policy", "desk-lm"), ("reward", "helpful"), ("reward", "polite"), ("feedback", "desk-comparisons"),
        ("prompts", "desk"), ("prompts", "desk-held-out"), ("shaper", "kl"), ("shaper", "whiten"), ("optimizer", "ppo"),
        ("metric", "reward"), ("metric", "kl"), ("metric", "length"),
    }  # fmt: skip
    ppo = resolved.components["optimizer", "ppo"]
    assert isinstance(ppo.config, PPOConfig)
    assert (ppo.config.learning_rate, ppo.config.clip, ppo.spec.name) == (3e-4, 0.2, "ppo")
    assert ppo.where == f"{registry.path}:19"


def test_a_child_changes_what_it_overrides(load: Callable[..., Registry]) -> None:
    parent, child = (load(DESIGN).resolve(name) for name in ("quickstart", "quickstart-reinforce"))
    assert ("optimizer", "ppo") not in child.components
    assert type(config(child, "optimizer.reinforce")) is OptimizerSettings
    assert child.stages[0] == parent.stages[0]
    assert child.settings.extends is None and child.settings.override == {}


def test_relative_paths_start_from_the_file(load: Callable[..., Registry], tmp_path: Path) -> None:
    (tmp_path / "examples/models/desk-lm").mkdir(parents=True)
    text = DESIGN.replace("{use: preference, config: {model: examples/models/desk-lm, epochs: 2}}",
                          "{use: preference, config: {model: gpt2}, load: runs/1/helpful}")  # fmt: skip
    resolved = load(text).resolve("quickstart")
    assert config(resolved, "prompts.desk").path == f"{tmp_path}/examples/data/desk_prompts.jsonl"
    assert config(resolved, "policy.desk-lm").model == f"{tmp_path}/examples/models/desk-lm"
    assert config(resolved, "reward.helpful").model == "gpt2"
    assert resolved.components["reward", "helpful"].load == f"{tmp_path}/runs/1/helpful"
    assert resolved.components["reward", "polite"].load is None


def test_3e_6_is_a_number_and_no_is_a_string(load: Callable[..., Registry]) -> None:
    components = """\
  reward: {r: {use: keywords, config: {prefer: [no, on, 'yes']}}}
  optimizer: {o: {use: ppo, config: {clip: 3e-6}}}
"""
    resolved = load(pipeline("[optimize: {optimizer: o, rewards: {r: 1}}]", components)).resolve("p")
    assert config(resolved, "optimizer.o").clip == 3e-6
    assert config(resolved, "reward.r").prefer == ("no", "on", "yes")


def test_stages_may_be_bare_names_and_need_ids_of_their_own(load: Callable[..., Registry]) -> None:
    resolved = load(pipeline("[evaluate, {evaluate: {id: again}}, {evaluate: {id: thrice, metrics: [kl]}}]")).resolve(
        "p"
    )
    assert [stage.id for stage in resolved.stages] == ["evaluate", "again", "thrice"]
    assert [config(resolved, i).id for i in range(3)] == ["evaluate", "again", "thrice"]
    assert errors_of(load(pipeline("[evaluate, evaluate]")).resolve, "p") == [
        "registry.yaml:7 pipelines.p.stages.evaluate.id: an earlier stage is called 'evaluate' too; "
        "give one of them an `id` of its own"
    ]


def test_a_catalogue_of_components_needs_no_pipelines(load: Callable[..., Registry]) -> None:
    registry = load("schema_version: 1\ncomponents: {shaper: {mine: {use: kl, config: {coef: 1}}}}")
    assert (registry.pipelines, registry.problems()) == ([], [])
    assert registry.component("shaper", "mine").config == KLConfig(coef=1)
    assert registry.component("shaper", "kl").config == KLConfig()
    assert errors_of(registry.component, "shaper", "mien") == [
        "registry.yaml: shaper 'mien' is not declared, and no installed plugin offers it; expected one of mine, kl, "
        "whiten; did you mean 'mine'?"
    ]
    assert load("schema_version: 1\ncomponents:\npipelines:\nfunctions:\nrequires:\n").problems() == []


def test_functions_are_resolved_where_a_reward_names_them(load: Callable[..., Registry], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def f(prompt, response): ...")
    functions = "{good: 'mine.py:f', other: 'math:sqrt', gone: 'gone.py:f'}"
    rewards = (
        "  reward: {r: {use: function, config: {function: good}}, s: {use: function, config: {function: goood}}}\n"
    )
    registry = load(pipeline("[optimize: {optimizer: ppo, rewards: {r: 1}}]", rewards, functions=functions))
    assert registry.resolve("p").functions == {"good": FunctionDecl("good", f"{tmp_path}/mine.py:f")}
    assert texts(registry.problems()) == [
        "registry.yaml:5 components.reward.s.config.function: there is no function 'goood'; did you mean 'good'?",
        f"registry.yaml:2 functions.gone: there is no file {tmp_path}/gone.py; paths are relative to the registry file",
    ]
    with pytest.raises(RegistryErrors, match=r"functions.gone: there is no file"):
        _ = registry.functions


def test_resolving_imports_only_what_the_pipeline_reaches(load: Callable[..., Registry]) -> None:
    catalogue = FakeCatalogue()
    registry = load(DESIGN, catalogue)
    assert catalogue.imported == []
    registry.resolve("quickstart-reinforce")
    assert "reinforce" in catalogue.imported and "ppo" not in catalogue.imported


# --- overrides -------------------------------------------------------------------------------------------------------

LAYERS = """\
schema_version: 1
components:
  policy: {lm: {use: causal-lm, config: {model: m}}}
  optimizer: {ppo: {use: ppo, config: {clip: 0.1}}}
pipelines:
  parent:
    seed: 1
    policy: lm
    override: {optimizer.ppo.adam_eps: 5, optimizer.ppo.weight_decay: 0.5}
    stages: [optimize: {optimizer: ppo, steps: 10, shapers: [kl, whiten]}]
  child:
    extends: parent
    precision: bf16
    override:
      optimizer.ppo.clip: 0.3
      optimizer.ppo.weight_decay: 0.25
      stages.optimize.steps: 20
      stages.optimize.sampling.top_k: 7
"""


def test_set_beats_override_beats_parent_beats_file(load: Callable[..., Registry]) -> None:
    def numbers(name: str, *overrides: str) -> tuple[Any, ...]:
        resolved = load(LAYERS).resolve(name, overrides)
        ppo, stage = config(resolved, "optimizer.ppo"), config(resolved, 0)
        return ppo.clip, ppo.adam_eps, ppo.weight_decay, stage.steps, stage.sampling.top_k, resolved.settings.seed

    assert numbers("parent") == (0.1, 5, 0.5, 10, 0, 1)
    assert numbers("child") == (0.3, 5, 0.25, 20, 7, 1)
    sets = [
        "optimizer.ppo.clip=0.4",
        "stages.optimize.steps=30",
        "seed=2",
        "seed=3",
        "stages.optimize.sampling.top_k=8",
    ]
    assert numbers("child", *sets) == (0.4, 5, 0.25, 30, 8, 3)
    assert load(LAYERS).resolve("child").settings.precision == "bf16"


def test_set_takes_yaml_values_pairs_and_mappings(load: Callable[..., Registry]) -> None:
    registry = load(LAYERS)
    resolved = registry.resolve("parent", ["stages.optimize.shapers=[kl]", ("seed", 7)])
    assert (config(resolved, 0).shapers, resolved.settings.seed) == (("kl",), 7)
    assert registry.resolve("parent", {"seed": 8, "optimizer.ppo.learning_rate": {"schedule": "linear", "start": 1}}).settings.seed == 8
    assert registry.resolve("parent", ["description=a: b # c"]).settings.description == "a: b # c"
    assert config(registry.resolve("parent", ["policy.lm.revision='1234567'"]), "policy.lm").revision == "1234567"
    assert config(registry.resolve("parent", ["policy.lm.revision="]), "policy.lm").revision is None


def test_lists_are_addressed_by_index(load: Callable[..., Registry]) -> None:
    registry = load(LAYERS)
    assert config(registry.resolve("parent", ["stages.optimize.shapers.1=kl"]), 0).shapers == ("kl", "kl")
    parts = ["optimizer.ppo.parts=[{top_k: 1}, {top_k: 2}]", "optimizer.ppo.parts.1.top_k=5"]
    ppo = config(registry.resolve("parent", parts), "optimizer.ppo")
    assert [part.top_k for part in ppo.parts] == [1, 5]


def test_an_id_that_is_only_registered_can_be_overridden(load: Callable[..., Registry]) -> None:
    resolved = load(LAYERS).resolve(
        "parent", ["stages.optimize.optimizer=reinforce", "optimizer.reinforce.learning_rate=1"]
    )
    assert config(resolved, "optimizer.reinforce").learning_rate == 1
    assert config(resolved, "shaper.kl") == KLConfig()


def test_stages_can_be_replaced(load: Callable[..., Registry]) -> None:
    sets = ["stages=[evaluate, {optimize: {optimizer: ppo}}]", "stages.optimize.steps=3"]
    resolved = load(LAYERS).resolve("parent", sets)
    assert [stage.id for stage in resolved.stages] == ["evaluate", "optimize"]
    assert config(resolved, 1).steps == 3
    assert errors_of(load(LAYERS).resolve, "parent", ["stages=[optimize: {optimizer: ppo, steps: x}]"]) == [
        "--set stages.optimize.steps: got 'x'; expected a whole number (optimizer steps)"
    ]


def test_overrides_leave_the_registry_and_the_values_alone(load: Callable[..., Registry]) -> None:
    registry, value = load(LAYERS), {"top_k": 3}
    registry.resolve(
        "parent", [("stages.optimize.sampling", value), "stages.optimize.sampling.top_k=4", "optimizer.ppo.clip=9"]
    )
    assert value == {"top_k": 3}
    assert config(registry.resolve("parent"), "optimizer.ppo").clip == 0.1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.optimise.steps=1", "there is no stage 'optimise'; did you mean 'optimize'?"),
        ("stages.optimize.step=1", "unknown key 'step'; did you mean 'steps'?"),
        ("stages.optimize=1", "stages.optimize is a whole, not a setting; expected stages.optimize.KEY"),
        ("stage.optimize.steps=1", "there is no 'stage' to set; expected stages.ID.KEY, KIND.ID.KEY or a setting; "
                                   "did you mean 'stages'?"),
        ("optimiser.ppo.clip=1", "there is no 'optimiser' to set; expected stages.ID.KEY, KIND.ID.KEY or a setting; "
                                 "did you mean 'optimizer'?"),
        ("optimizer.pppo.clip=1", "optimizer 'pppo' is not declared, and no installed plugin offers it; "
                                  "expected one of ppo, reinforce; did you mean 'ppo'?"),
        ("optimizer.acer.clip=1", "optimizer 'acer' is not declared, and belongs to rlhf-plugin-acer, which is not "
                                  "installed; expected one of ppo, reinforce; pip install rlhf-plugin-acer"),
        ("optimizer.ppo.clop=1", "unknown key 'clop'; did you mean 'clip'?"),
        ("optimizer.ppo.clip=x", "got 'x'; expected a number (range of the ratio)"),
        ("optimizer.ppo.clip.x=1", "clip is 0.1, which has no keys; set clip itself"),
        ("optimizer.ppo=1", "optimizer.ppo is a whole, not a setting; expected optimizer.ppo.KEY"),
        ("optimizer.reinforce.learning_rate=1", "pipeline 'parent' does not use optimizer 'reinforce'; it uses ppo"),
        ("reward.polite.prefer=[a]", "reward 'polite' is not declared"),
        ("stages.optimize.shapers.2=kl", "shapers is a list of 2, which has no '2'; expected an index from 0 to 1"),
        ("stages.optimize.shapers.kl=1", "shapers is a list of 2, which has no 'kl'"),
        ("sed=1", "there is no 'sed' to set; expected stages.ID.KEY, KIND.ID.KEY or a setting; did you mean 'seed'?"),
        ("extends=x", "there is no 'extends' to set"),
        ("components.optimizer.ppo.config.clip=1", "there is no 'components' to set; expected stages.ID.KEY, "
                                                   "KIND.ID.KEY or a setting; write optimizer.ppo.clip"),
        ("seed", "has no value; expected PATH=VALUE, such as stages.optimize.steps=10"),
        ("seed=-1", "got -1; expected 0 or more (all randomness of a run is derived from it)"),
        ("seed=true", "got true; expected a number"),
        ("=1", "'' is not a path; expected keys joined by dots"),
        ("stages..steps=1", "'stages..steps' is not a path"),
        ("seed=[1", "'[1' is not YAML: a bracket that is never closed, or a comma that is missing"),
        ("seed={a: 1, a: 2}", "'{a: 1, a: 2}' is not YAML: is written twice"),
        ("precision=bf61", "got 'bf61'; expected 'auto', 'fp32' or 'bf16' (of forward and backward passes; auto: bf16 "
                           "where the hardware is fast at it); did you mean 'bf16'?"),
        ("policy=ml", "policy 'ml' is not declared, and no installed plugin offers it"),
    ],
)  # fmt: skip
def test_a_bad_override_is_one_error_that_names_it(load: Callable[..., Registry], override: str, message: str) -> None:
    errors = errors_of(load(LAYERS).resolve, "parent", [override])
    assert len(errors) == 1
    assert errors[0].startswith(f"--set {override.partition('=')[0]}") and message in errors[0]


def test_a_bad_override_in_the_file_has_its_line(load: Callable[..., Registry]) -> None:
    text = LAYERS.replace("optimizer.ppo.clip: 0.3", "optimizer.ppo.clop: 0.3").replace("steps: 20", "steps: 0")
    assert errors_of(load(text).resolve, "child") == [
        "registry.yaml:17 pipelines.child.override.stages.optimize.steps: got 0; expected 1 or more (optimizer steps)",
        "registry.yaml:15 pipelines.child.override.optimizer.ppo.clop: unknown key 'clop'; did you mean 'clip'?",
    ]
    assert errors_of(load(text).resolve, "parent") == []


def test_overrides_that_are_no_overrides(load: Callable[..., Registry]) -> None:
    assert errors_of(load(LAYERS).resolve, "parent", [3]) == ["overrides: got 3; expected PATH=VALUE or (path, value)"]


@pytest.mark.parametrize(
    ("extends", "message"),
    [
        ("parnet", "there is no pipeline 'parnet'; did you mean 'parent'?"),
        ("child", "a pipeline cannot extend itself"),
        ("[parent]", "got a list of 1; expected the name of one pipeline"),
        (
            "middle",
            "'middle' itself extends 'parent'; expected one level only; extend 'parent' and repeat the overrides "
            "of 'middle'",
        ),
    ],
)
def test_extends_names_one_pipeline_one_level_up(load: Callable[..., Registry], extends: str, message: str) -> None:
    text = LAYERS.replace("extends: parent", f"extends: {extends}") + "  middle: {extends: parent}\n"
    assert errors_of(load(text).resolve, "child") == [f"registry.yaml:12 pipelines.child.extends: {message}"]


# --- errors ----------------------------------------------------------------------------------------------------------


def test_all_problems_are_shown_together_with_their_lines(load: Callable[..., Registry]) -> None:
    text = (
        DESIGN.replace("epochs: 2", "epoch: 2, learning_rate: fast")
        .replace(
            "{use: keywords, config: {prefer: [please, thanks]", "{use: keyword, config: {prefer: [please, thanks]"
        )
        .replace("shapers: [kl, whiten], steps: 6", "shapers: [kl, wihten], stepps: 6")
        .replace("seed: 0", "sede: 0")
        .replace("requires:", "require:")
        .replace("extends: quickstart", "extends: quickstat")
    )
    registry = load(text)
    assert texts(registry.problems()) == [
        "registry.yaml:3 require: unknown key 'require'; did you mean 'requires'?",
        "registry.yaml:13 components.reward.helpful.config.learning_rate: got 'fast'; "
        "expected a number (learning rate of AdamW, or a schedule of it, counted in updates of the weights)",
        "registry.yaml:13 components.reward.helpful.config.epoch: unknown key 'epoch'; did you mean 'epochs'?",
        "registry.yaml:14 components.reward.polite.use: reward 'keyword': no installed plugin offers it; "
        "did you mean 'keywords'?",
        "registry.yaml:22 pipelines.quickstart.sede: unknown key 'sede'; did you mean 'seed'?",
        "registry.yaml:26 pipelines.quickstart.stages.optimize.stepps: unknown key 'stepps'; did you mean 'steps'?",
        "registry.yaml:26 pipelines.quickstart.stages.optimize.shapers.1: shaper 'wihten' is not declared, and no "
        "installed plugin offers it; expected one of kl, whiten; did you mean 'whiten'?",
        "registry.yaml:29 pipelines.quickstart-reinforce.extends: there is no pipeline 'quickstat'; "
        "did you mean 'quickstart'?",
    ]
    assert str(RegistryErrors(registry.problems())).count("\n") == 7


CONFIGS_THAT_FAIL = [
    ("reward", "preference, config: {}", "config.model: is missing; add `model` (path or hub id)"),
    ("reward", "preference", "config.model: is missing; add `model` (path or hub id)"),
    ("reward", "preference, config: {model: m, epochs: 1.5}", "epochs: got 1.5; expected a whole number (passes over"),
    ("reward", "preference, config: {model: m, epochs: two}", "epochs: got 'two'; expected a whole number"),
    ("reward", "preference, config: {model: m, epochs: true}", "epochs: got true; expected a number"),
    ("reward", "preference, config: {model: m, epochs: 0}", "epochs: got 0; expected 1 or more"),
    ("reward", "preference, config: {model: m, epochs: [1]}", "epochs: got a list of 1; expected a whole number"),
    ("reward", "preference, config: {model: m, epochs: }", "epochs: got nothing (null); expected a whole number"),
    ("reward", "preference, config: {model: 3}", 'model: got 3; expected text (path or hub id); write "3", with the'),
    ("reward", "preference, config: {model: m, learning_rate: -1}", "learning_rate: got -1, expected 0 or more"),
    ("reward", "preference, config: {model: m, learning_rate: {schedule: linear, start: 1, end: -0.5}}",
     "learning_rate: got end -0.5 of the linear schedule, expected 0 or more"),
    ("reward", "preference, config: {model: m, learning_rate: {schedule: cosin, start: 1}}",
     "learning_rate.schedule: got 'cosin'; expected 'constant', 'linear', 'cosine' or 'inverse-sqrt'"),
    ("reward", "preference, config: {model: m, learning_rate: .inf}", "learning_rate: got inf; expected a finite"),
    ("reward", "preference, config: {model: m, betas: [1]}", "betas.1: is missing"),
    ("reward", "preference, config: [model]", "config: got a list of 1; expected a mapping (`key: value`)"),
    ("reward", "keywords, config: {prefer: please}", "prefer: got 'please'; expected a list (words that are rewarded); "
                                                     "write [please]"),
    ("reward", "keywords, config: {prefer: [1]}", 'prefer.0: got 1; expected text (words that are rewarded); write'),
    ("reward", "keywords, config: {scale: liner}", "scale: got 'liner'; expected 'linear' or 'log' (of the counts); "
                                                   "did you mean 'linear'?"),
    ("reward", "keywords, config: {preffer: []}", "preffer: unknown key 'preffer'; did you mean 'prefer'?"),
    ("reward", "keywords, config: {zzz: []}", "zzz: unknown key 'zzz'; known: prefer, avoid, scale, rules"),
    ("reward", "keywords, config: {rules: [{top: 1}]}", "rules.0.top: unknown key 'top'; did you mean 'stop'?"),
    ("reward", "keywords, config: {rules: [{top_p: 2}]}", "rules.0.top_p: got 2; expected 1 or less (draw among"),
    ("reward", "keywords, config: {rules: [{min_new_tokens: 100}]}", "rules.0: min_new_tokens (100) exceeds max_new"),
    ("reward", "keywords, load: 3", "load: got 3; expected text (what an earlier run fitted)"),
    ("reward", "keywords, confg: {}", "confg: unknown key 'confg'; did you mean 'config'?"),
    ("reward", "keywords, prefer: []", "prefer: unknown key 'prefer'; settings go under `config`"),
    ("reward", "[keywords]", "use: got a list of 1; expected a registered name"),
    ("reward", "mix, config: {rewards: {a: x}}", "rewards.a: got 'x'; expected a number (id -> weight)"),
    ("reward", "function, config: {function: f}", "function: there is no function 'f'; write functions: "
                                                  "{f: path/file.py:callable}"),
    ("optimizer", "ppo, config: {parts: 3}", "parts: got 3; expected a list or a mapping (made up"),
    ("optimizer", "ppo, config: {parts: [{top_k: -1}]}", "parts.0.top_k: got -1; expected 0 or more (draw among"),
    ("optimizer", "ppo, config: {parts: {a: {topk: 1}}}", "parts.a.topk: unknown key 'topk'; did you mean 'top_k'?"),
    ("optimizer", "ppo, config: {sampling: hot}", "sampling: got 'hot'; expected a mapping (how responses are drawn)"),
    ("shaper", "kl, config: {lambda: x}", "lambda: got 'x'; expected a number (its name is a Python keyword)"),
    ("shaper", "kl, config: {lambd: 1}", "lambd: unknown key 'lambd'; did you mean 'lambda'?"),
    ("feedback", "preference, config: {path: a, limit: x}", "limit: got 'x'; expected a whole number (read at"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "declaration", "message"), CONFIGS_THAT_FAIL)
def test_a_wrong_config_is_told_in_words(
    load: Callable[..., Registry], kind: str, declaration: str, message: str
) -> None:
    text = f"schema_version: 1\ncomponents:\n  {kind}:\n    mine: {{use: {declaration}}}\n"
    errors = texts(load(text).problems())
    assert len(errors) == 1
    assert errors[0].startswith(f"registry.yaml:4 components.{kind}.mine.")
    assert message in errors[0]
    assert not any(jargon in errors[0] for jargon in ("pydantic", "http", "Input should", "type=", "Value error"))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("[]", "5 pipelines.p.stages: there are no stages; expected at least one"),
        ("{evaluate: {}}", "pipelines.p.stages: got a mapping; expected a list of stages; begin each with `- `"),
        ("[{evaluate: , metrics: [kl]}]", "stages.0: got the keys evaluate, metrics; expected one stage: "
                                          "`name: {settings}`, or just the name; indent the settings further than"),
        ("[3]", "pipelines.p.stages.0: got 3; expected one stage"),
        ("[evalute]", "stages.evalute: stage 'evalute': no installed plugin offers it; did you mean 'evaluate'?"),
        ("[evaluate: kl]", "pipelines.p.stages.evaluate: got 'kl'; expected a mapping (`key: value`)"),
        ("[evaluate: {id: a.b}]", "stages.a.b.id: 'a.b' cannot be the id of a stage; expected letters, digits"),
        ("[evaluate: {id: 3}]", "stages.3.id: got 3; expected text"),
        ("[evaluate: {best: kl}]", "stages.evaluate: `best` and `until` look at evaluations during the stage"),
        ("[fit-reward]", "stages.fit-reward.reward: is missing; add `reward` (the one that learns)"),
    ],
)  # fmt: skip
def test_wrong_stages(load: Callable[..., Registry], stages: str, message: str) -> None:
    errors = errors_of(load(pipeline(stages)).resolve, "p")
    assert message.removeprefix("5 ") in errors[0]
    assert errors[0].startswith("registry.yaml:7 ")
    assert len(errors) == (2 if stages == "[fit-reward]" else 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("components: {}", "registry.yaml:1 schema_version: is missing; add `schema_version: 1`"),
        ("schema_version: 2", "registry.yaml:1 schema_version: got 2; expected 1; pip install -U rlhf-core"),
        ("schema_version: true", "schema_version: got true; expected 1; write `schema_version: 1`"),
        ("schema_version: '1'", "schema_version: got '1'; expected 1"),
        ("schema_version: 1\ncomponent: {}", "registry.yaml:2 component: unknown key 'component'; did you mean"),
        ("schema_version: 1\ncomponents: []", "registry.yaml:2 components: got an empty list; expected a mapping"),
        ("schema_version: 1\ncomponents: 0", "registry.yaml:2 components: got 0; expected a mapping"),
        ("schema_version: 1\ncomponents:\n  rewards: {}", "registry.yaml:3 components.rewards: 'rewards' is no kind of "
                                                         "component that is installed; did you mean 'reward'?"),
        ("schema_version: 1\ncomponents:\n  stage: {}", "components.stage: 'stage' is no kind of component that is "
                                                       "installed; stages are written under pipelines.NAME.stages"),
        ("schema_version: 1\ncomponents: {reward: [1]}", "components.reward: got a list of 1; expected a mapping"),
        ("schema_version: 1\ncomponents: {metric: {a.b: {use: kl}}}", "components.metric.a.b: 'a.b' cannot be a name; "
                                                                    "expected letters, digits, - and _ only"),
        ("schema_version: 1\npipelines: quickstart", "pipelines: got 'quickstart'; expected a mapping"),
        ("schema_version: 1\nfunctions: [f]", "functions: got a list of 1; expected a mapping"),
        ("schema_version: 1\nrequires: rlhf-core", "requires: got 'rlhf-core'; expected a list of requirements"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_file_as_a_whole(load: Callable[..., Registry], text: str, message: str) -> None:
    registry = load(text)
    assert len(registry.problems()) == 1
    assert message in texts(registry.problems())[0]
    assert message in errors_of(registry.resolve, "any")[0]
    assert message in errors_of(registry.component, "metric", "kl")[0]


@pytest.mark.parametrize(
    ("declaration", "message"),
    [
        ("{use: kl}", ""),
        ("kl", "components.shaper.mine: got 'kl'; expected a mapping with `use`; write {use: kl}"),
        (
            "",
            "components.shaper.mine: got nothing (null); expected a mapping with `use`; "
            "write {use: NAME, config: {...}}",
        ),
        ("{}", "components.shaper.mine: `use` is missing; expected one of kl, whiten; add it"),
        ("{use: kll}", "components.shaper.mine.use: shaper 'kll': no installed plugin offers it; did you mean 'kl'?"),
        ("{use: }", "components.shaper.mine.use: got nothing (null); expected a registered name"),
        ("{use: my.module.KL}", "components.shaper.mine.use: shaper 'my.module.KL': no installed plugin offers it"),
    ],
)
def test_declarations(load: Callable[..., Registry], declaration: str, message: str) -> None:
    registry = load(f"schema_version: 1\ncomponents:\n  shaper:\n    mine: {declaration}\n")
    assert texts(registry.problems()) == ([f"registry.yaml:4 {message}"] if message else [])


def test_an_unknown_pipeline(load: Callable[..., Registry]) -> None:
    assert errors_of(load(DESIGN).resolve, "quikstart") == [
        "registry.yaml: there is no pipeline 'quikstart'; did you mean 'quickstart'?"
    ]
    assert errors_of(load("schema_version: 1").resolve, "q") == [
        "registry.yaml: there is no pipeline 'q'; the file declares none"
    ]
    assert errors_of(load("schema_version: 1\npipelines:\n  q: 3").resolve, "q") == [
        "registry.yaml:3 pipelines.q: got 3; expected a mapping (`key: value`)"
    ]
    assert errors_of(load("schema_version: 1\npipelines:\n  q: {stages: [evaluate]}").resolve, "q") == [
        "registry.yaml:3 pipelines.q.policy: is missing; add `policy` (the policy that is trained and evaluated)"
    ]


def test_a_missing_plugin_hurts_only_the_pipelines_that_need_it(load: Callable[..., Registry]) -> None:
    text = DESIGN + "  with-acer: {extends: quickstart, override: {stages.optimize.optimizer: acer}}\n"
    text = text.replace("pipelines:\n", "  embedder:\n    e: {use: some}\npipelines:\n")
    registry = load(text)
    assert registry.resolve("quickstart").name == "quickstart"
    acer = (
        "registry.yaml:33 pipelines.with-acer.override.stages.optimize.optimizer: optimizer 'acer' is not declared, "
        "and belongs to rlhf-plugin-acer, which is not installed; expected one of ppo, reinforce; "
        "pip install rlhf-plugin-acer"
    )
    assert errors_of(registry.resolve, "with-acer") == [acer]
    embedder = (
        "registry.yaml:20 components.embedder: 'embedder' is no kind of component that is installed; known: policy"
    )
    problems = texts(registry.problems())
    assert problems[0].startswith(embedder) and problems[1:] == [acer]


def test_a_plugin_whose_config_does_not_import(load: Callable[..., Registry]) -> None:
    broken = PluginError(
        "optimizer 'ppo' of rlhf-plugin-ppo 0.1", "importing x failed with ImportError: torch", fix="reinstall"
    )
    catalogue = FakeCatalogue(
        {**CONFIGS, "optimizer": {"ppo": broken, "reinforce": OptimizerSettings}, "metric": {"kl": int}}
    )
    registry = load(DESIGN.replace("[reward, kl, length]", "[kl]"), catalogue)
    assert errors_of(registry.resolve, "quickstart") == [
        "registry.yaml:19 components.optimizer.ppo.use: optimizer 'ppo' of rlhf-plugin-ppo 0.1: importing x failed "
        "with ImportError: torch; reinstall",
        "registry.yaml:27 pipelines.quickstart.stages.evaluate.metrics.0 (metric 'kl' by its defaults) use: "
        "the config of metric 'kl' is <class 'int'>; expected a Config; report it to the author of the plugin",
    ]


def test_problems_of_a_component_used_by_its_defaults_name_who_asked(load: Callable[..., Registry]) -> None:
    assert errors_of(load(pipeline("[optimize: {optimizer: ppo, rewards: {preference: 1}}]")).resolve, "p") == [
        "registry.yaml:7 pipelines.p.stages.optimize.rewards.preference (reward 'preference' by its defaults) model: "
        "is missing; add `model` (path or hub id)"
    ]


def test_a_cycle_is_shown_once_however_it_is_entered(load: Callable[..., Registry]) -> None:
    rewards = """\
  reward:
    c: {use: mix, config: {rewards: {a: 1}}}
    a: {use: mix, config: {rewards: {b: 1, keywords: 1}}}
    b: {use: mix, config: {rewards: {c: 1}}}
    self: {use: mix, config: {rewards: {self: 1}}}
"""
    registry = load(pipeline("[optimize: {optimizer: ppo, rewards: {b: 1}}]", rewards))
    cycle = (
        "registry.yaml:6 components.reward.a.config.rewards.b: components name each other in a circle: "
        "reward 'a' -> reward 'b' -> reward 'c' -> reward 'a'; take one of these references out"
    )
    assert errors_of(registry.resolve, "p") == [cycle]
    assert texts(registry.problems()) == [
        cycle,
        "registry.yaml:8 components.reward.self.config.rewards.self: components name each other in a circle: "
        "reward 'self' -> reward 'self'; take one of these references out",
    ]


def test_two_ways_to_one_component_are_no_cycle(load: Callable[..., Registry]) -> None:
    rewards = """\
  reward:
    a: {use: mix, config: {rewards: {keywords: 1}}}
    b: {use: mix, config: {rewards: {a: 1, keywords: 1}}}
"""
    registry = load(pipeline("[optimize: {optimizer: ppo, rewards: {a: 1, b: 1}}]", rewards))
    assert registry.problems() == []
    assert len(registry.resolve("p").components) == 5


def test_requirements_are_checked_before_anything_is_imported(load: Callable[..., Registry]) -> None:
    catalogue = FakeCatalogue()
    listed = ["rlhf-core>=99", "rlhf-plugin-nowhere[fast]>=0.1", "not a requirement", 3, "gone; python_version < '3'"]
    text = DESIGN.replace('["rlhf-core>=0.1"]', json.dumps(listed)).replace("epochs: 2", "epoch: 2")
    registry = load(text, catalogue)
    expected = [
        "registry.yaml:3 requires.0: rlhf-core 0.1.0 is installed; expected >=99; pip install 'rlhf-core>=99'",
        "registry.yaml:3 requires.1: rlhf-plugin-nowhere is not installed; "
        "pip install 'rlhf-plugin-nowhere[fast]>=0.1'",
        "registry.yaml:3 requires.2: got 'not a requirement'; expected a requirement such as 'rlhf-plugin-ppo>=0.1'",
        "registry.yaml:3 requires.3: got 3; expected a requirement such as 'rlhf-plugin-ppo>=0.1'",
    ]
    assert texts(registry.problems()) == errors_of(registry.resolve, "quickstart") == expected
    assert errors_of(registry.component, "shaper", "kl") == expected
    assert catalogue.imported == []


# --- the environment -------------------------------------------------------------------------------------------------

JUDGE = """\
schema_version: 1
components:
  policy: {lm: {use: causal-lm, config: {model: m}}}
  reward:
    judge:
      use: judge
      load: ${env:PLANTED}/fitted
      config:
        api_key: ${env:PLANTED}
        url: https://${env:PLANTED_HOST}/v1
        cache: caches/${env:PLANTED}
        timeout: ${env:PLANTED_TIME}
        headers: {x-key: "Bearer ${env:PLANTED}", plain: text}
        tags: [greet]
pipelines:
  p: {policy: lm, device: "${env:PLANTED_DEVICE}", stages: [optimize: {optimizer: ppo, rewards: {judge: 1}}]}
"""
SECRET = "s3cret-Value"


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in {"": SECRET, "_HOST": "hidden.example", "_TIME": "2.5", "_DEVICE": "cuda:3"}.items():
        monkeypatch.setenv(f"PLANTED{name}", value)
    return monkeypatch


def test_variables_are_filled_in_and_never_written_out(
    load: Callable[..., Registry], planted: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    resolved = load(JUDGE).resolve("p")
    judge = resolved.components["reward", "judge"]
    assert isinstance(judge.config, JudgeConfig)
    assert judge.config.api_key == SECRET
    assert judge.config.url == "https://hidden.example/v1"
    assert judge.config.cache == f"{tmp_path}/caches/{SECRET}"
    assert judge.config.timeout == 2.5
    assert judge.config.headers["x-key"] == f"Bearer {SECRET}"
    assert judge.config.greeting == f"hello {SECRET}"
    assert judge.load == f"{tmp_path}/{SECRET}/fitted"
    assert resolved.settings.device == "cuda:3"
    written = resolved.to_dict()
    assert written["components"]["reward"]["judge"] == {
        "use": "judge",
        "config": {
            "api_key": "${env:PLANTED}",
            "url": "https://${env:PLANTED_HOST}/v1",
            "cache": f"{tmp_path}/caches/${{env:PLANTED}}",
            "timeout": "${env:PLANTED_TIME}",
            "retries": 2,
            "headers": {"x-key": "Bearer ${env:PLANTED}", "plain": "text"},
            "tags": ["greet"],
            "greeting": "hello ${env:PLANTED}",
        },
        "load": f"{tmp_path}/${{env:PLANTED}}/fitted",
    }
    assert written["pipelines"]["p"]["device"] == "${env:PLANTED_DEVICE}"
    for text in (json.dumps(written), repr(resolved), str(resolved)):
        assert not any(secret in text for secret in (SECRET, "hidden.example", "2.5", "cuda:3"))


def test_absolute_paths_from_variables_stay_as_written(
    load: Callable[..., Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED", "/abs/secret")
    rewards = '  reward: {j: {use: judge, load: "${env:PLANTED}/x", config: {api_key: k, cache: "${env:PLANTED}/c"}}}\n'
    resolved = load(pipeline("[optimize: {optimizer: ppo, rewards: {j: 1}}]", rewards)).resolve("p")
    judge = resolved.components["reward", "j"]
    assert (judge.load, config(resolved, "reward.j").cache) == ("/abs/secret/x", "/abs/secret/c")
    assert judge.written["load"] == "${env:PLANTED}/x"
    assert judge.written["config"]["cache"] == "${env:PLANTED}/c"


def test_an_unset_variable_is_named(load: Callable[..., Registry], planted: pytest.MonkeyPatch) -> None:
    planted.delenv("PLANTED")
    planted.delenv("PLANTED_TIME")
    text = JUDGE.replace("api_key: ${env:PLANTED}", "api_key: ${env:PLANTED}${env:MY-KEY}").replace(
        "plain: text", "plain: 3"
    )
    judge = "components.reward.judge"
    places = {7: "load", 9: "config.api_key", 11: "config.cache", 13: "config.headers.x-key"}
    expected = [
        *(
            f"registry.yaml:{line} {judge}.{path}: the environment variable PLANTED is not set; export PLANTED=..."
            for line, path in places.items()
        ),
        f"registry.yaml:9 {judge}.config.api_key: 'MY-KEY' cannot be the name of an environment variable; "
        "expected letters, digits and _; write ${env:NAME}",
        f"registry.yaml:12 {judge}.config.timeout: the environment variable PLANTED_TIME is not set; "
        "export PLANTED_TIME=...",
        f"registry.yaml:13 {judge}.config.headers.plain: got 3; expected text (of every request); "
        'write "3", with the quotes',
    ]
    assert sorted(errors_of(load(text).resolve, "p")) == sorted(expected)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("PLANTED_TIME", "hunter2", "config.timeout: got '${env:PLANTED_TIME}'; expected a number (seconds); "
                                    "check the environment variable; its value is not shown"),
        ("PLANTED_TIME", "-20.50", "config.timeout: got '${env:PLANTED_TIME}'; expected a number above 0"),
        ("PLANTED", "bad-hunter2", "config: the service does not know the key ${env:PLANTED}"),
        ("PLANTED", "crash-hunter2", "config: the checks of JudgeConfig raised KeyError: '${env:PLANTED}'; report it"),
        ("PLANTED_DEVICE", "HUNTER2", "pipelines.p.device: got '${env:PLANTED_DEVICE}'; expected text of the form"),
    ],
)  # fmt: skip
def test_no_message_and_no_traceback_shows_a_value(
    load: Callable[..., Registry], planted: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    planted.setenv(variable, value)
    registry = load(JUDGE)
    with pytest.raises(RegistryErrors) as caught:
        registry.resolve("p")
    assert message in str(caught.value) and len(caught.value.errors) == 1
    shown = [*map(str, registry.problems()), *traceback.format_exception(caught.value)]
    for error in caught.value.errors:
        shown += [repr(error), *traceback.format_exception(error)]
    assert value.lower() not in "".join(shown).lower()
    assert "20.5" not in "".join(shown)


def test_a_reference_cannot_come_from_the_environment(
    load: Callable[..., Registry], planted: pytest.MonkeyPatch
) -> None:
    text = pipeline('[optimize: {optimizer: "${env:PLANTED}", shapers: [kl, "${env:PLANTED}"]}]').replace(
        "policy: lm", 'policy: "${env:PLANTED}"')  # fmt: skip
    assert errors_of(load(text).resolve, "p") == [
        f"registry.yaml:{line} pipelines.p.{path}: which {kind} it is cannot come from the environment; "
        "expected an id; write it out"
        for line, path, kind in [
            (6, "policy", "policy"),
            (7, "stages.optimize.optimizer", "optimizer"),
            (7, "stages.optimize.shapers.1", "shaper"),
        ]
    ]


def test_set_may_name_variables(load: Callable[..., Registry], planted: pytest.MonkeyPatch) -> None:
    resolved = load(JUDGE).resolve("p", ["reward.judge.url=${env:PLANTED}"])
    assert config(resolved, "reward.judge").url == SECRET
    assert resolved.to_dict()["components"]["reward"]["judge"]["config"]["url"] == "${env:PLANTED}"


# --- round trip ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["quickstart", "quickstart-reinforce"])
def test_the_resolved_registry_resolves_to_the_same(load: Callable[..., Registry], tmp_path: Path, name: str) -> None:
    overrides = ["stages.optimize.sampling.stop=[no, '1e3']", "description='2026'", "shaper.kl.lambda=0.5"]
    first = load(DESIGN).resolve(name, overrides)
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "resolved.json").write_text(json.dumps(first.to_dict()))
    second = Registry.load(other / "resolved.json", FakeCatalogue())
    assert second.problems() == []
    assert second.resolve(name) == first
    assert second.resolve(name).to_dict() == first.to_dict()
    assert (second.resolve(name).root, first.root) == (other, tmp_path)


def test_yaml_functions_loads_and_variables_come_round_too(
    load: Callable[..., Registry], planted: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "f.py").write_text("def make(key): ...")
    functions = 'functions:\n  f: {factory: "f.py:make", kwargs: {key: "${env:PLANTED}"}}\n  unused: math:sqrt\n'
    text = JUDGE.replace("components:\n", f"{functions}components:\n").replace("{judge: 1}", "{judge: 1, g: 2}")
    text = text.replace("  reward:\n", "  reward:\n    g: {use: function, config: {function: f}}\n")
    first = load(text).resolve("p")
    assert list(first.to_dict()["functions"]) == ["f"]
    with (tmp_path / "sub.yaml").open("w") as file:
        YAML().dump(first.to_dict(), file)
    assert SECRET not in (tmp_path / "sub.yaml").read_text()
    second = Registry.load(tmp_path / "sub.yaml", FakeCatalogue()).resolve("p")
    assert second == first
    assert second.functions["f"].kwargs == {"key": "${env:PLANTED}"}


def test_the_resolved_registry_holds_only_what_is_reached(load: Callable[..., Registry]) -> None:
    written = load(DESIGN).resolve("quickstart-reinforce").to_dict()
    assert list(written) == ["schema_version", "requires", "components", "pipelines"]
    assert list(written["pipelines"]) == ["quickstart-reinforce"]
    assert list(written["components"]["optimizer"]) == ["reinforce"]
    assert written["components"]["shaper"]["kl"]["config"] == {"coef": 0.05, "estimator": "k1", "lambda": 0.95}
    assert list(written["pipelines"]["quickstart-reinforce"]["stages"][2]) == ["evaluate"]


# --- schema ----------------------------------------------------------------------------------------------------------


def test_the_schema_describes_what_is_installed() -> None:
    schema = json_schema(FakeCatalogue())
    assert json.loads(json.dumps(schema)) == schema
    reward = schema["properties"]["components"]["properties"]["reward"]["additionalProperties"]
    assert reward["properties"]["use"]["enum"] == ["function", "judge", "keywords", "mix", "preference"]
    assert reward["properties"]["use"]["enumDescriptions"][2] == "the keywords reward"
    then = {"properties": {"config": {"$ref": "#/$defs/reward.judge"}}, "required": ["config"]}
    assert {"if": {"properties": {"use": {"const": "judge"}}}, "then": then} in reward["allOf"]
    judge = schema["$defs"]["reward.judge"]
    assert judge["additionalProperties"] is False and judge["required"] == ["api_key"]
    assert judge["properties"]["timeout"] == {
        "anyOf": [{"exclusiveMinimum": 0, "type": "number"}, {"$ref": "#/$defs/env"}],
        "description": "seconds", "default": 10.0,
    }  # fmt: skip
    assert judge["properties"]["api_key"] == {"type": "string", "description": "from the service"}
    assert schema["$defs"]["shaper.kl"]["properties"]["lambda"]["description"] == "its name is a Python keyword"
    assert "stage" not in schema["properties"]["components"]["properties"]
    assert "title" not in json.dumps(schema["$defs"]["pipeline"])


def test_the_schema_does_not_depend_on_the_order_of_discovery() -> None:
    turned = FakeCatalogue({kind: dict(reversed(CONFIGS[kind].items())) for kind in reversed(CONFIGS)})
    assert json.dumps(json_schema(turned)) == json.dumps(json_schema(FakeCatalogue()))


def test_a_config_that_cannot_be_described_leaves_the_rest(load: Callable[..., Registry]) -> None:
    schema = json_schema(FakeCatalogue({"shaper": {"kl": PluginError("kl", "broken"), "whiten": Empty, "odd": int}}))
    assert list(schema["$defs"]) == ["env", "pipeline", "shaper.whiten"]


def test_the_schema_accepts_what_we_accept_and_refuses_what_we_refuse(load: Callable[..., Registry]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema(FakeCatalogue())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)

    def accepts(text: str) -> bool:
        return bool(validator.is_valid(parse(text, "file")[0]))

    assert all(
        map(accepts, [DESIGN, LAYERS, JUDGE, pipeline("[evaluate, {evaluate: }]"), "schema_version: 1\ncomponents:"])
    )
    for kind, declaration, _ in CONFIGS_THAT_FAIL:
        if not any(part in declaration for part in ("rules: [{min_", "function: f", ".inf")):
            assert not accepts(f"schema_version: 1\ncomponents: {{{kind}: {{mine: {{use: {declaration}}}}}}}"), (
                declaration
            )
    assert not accepts("schema_version: 2") and not accepts("schema_version: 1\ncomponent: {}")
    assert not accepts(DESIGN.replace("seed: 0", "sed: 0")) and not accepts(DESIGN.replace("steps: 6", "step: 6"))
    assert not accepts(pipeline("[fit-reward]")) and not accepts(pipeline("[evalute]"))
    assert accepts(DESIGN.replace("steps: 6", 'steps: "${env:STEPS}"'))


# --- the whole -------------------------------------------------------------------------------------------------------


def test_installed_plugins_are_a_catalogue(load: Callable[..., Registry]) -> None:
    catalogue: Catalogue = load_plugins(disable="all")
    registry = load("schema_version: 1\ncomponents: {shaper: {mine: {use: kl, config: {coeff: 1}}}}", catalogue)
    assert texts(registry.problems()) == [
        "registry.yaml:2 components.shaper.mine.config.coeff: unknown key 'coeff'; did you mean 'coef'?"
    ]
    assert registry.component("shaper", "kl").use == "kl"
    assert "shaper.kl" in json_schema(catalogue)["$defs"]


def test_importing_the_registry_imports_no_torch() -> None:
    code = "import sys, rlhf_core.registry; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


BASES = [DESIGN, LAYERS, JUDGE]
WORDS = [
    "3",
    "x",
    "null",
    "[]",
    "{}",
    "[1,{a:b}]",
    "kl",
    "${env:PATH}",
    "${env:}",
    "'",
    "&a",
    "*a",
    "true",
    "a.b",
    "quickstart",
    ".inf",
    "!!x",
    "<<",
] + ["- ", ": "]
WORDS += ["\n", "\t", "  "]
KEYS = (
    "use config load id stages policy override extends metrics rewards stages.optimize.steps optimize evaluate p seed"
)
PLACES = "components requires functions pipelines reward declaration config pipeline stages stage override"
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS.split()) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(st.sampled_from(BASES), st.integers(0, 2**32), st.integers(1, 6))
def test_whatever_is_written_only_our_errors_are_raised(
    load: Callable[..., Registry], text: str, seed: int, count: int
) -> None:
    """Tokens of a valid file are dropped, doubled, swapped, or replaced; whole lines are indented or lost."""
    rng = random.Random(seed)
    tokens = re.findall(r"\n *|[A-Za-z0-9_.${}:/-]+?(?=[ ,}\]:\n])|.", text)
    for _ in range(count):
        i, j = rng.randrange(len(tokens)), rng.randrange(len(tokens))
        action = rng.randrange(6)
        if action == 0:
            tokens[i] = ""
        elif action == 1:
            tokens[i] *= 2
        elif action == 2:
            tokens[i], tokens[j] = tokens[j], tokens[i]
        elif action == 3:
            tokens[i] = rng.choice(WORDS)
        elif action == 4:
            tokens[i] = tokens[j]
        else:
            tokens[i] += rng.choice(WORDS)
    try:
        registry = load("".join(tokens))
        for error in registry.problems():
            assert isinstance(error, RLHFError) and str(error)
        for name in registry.pipelines:
            resolved = registry.resolve(name, ["stages.optimize.steps=2", "seed=3"])
            assert load(json.dumps(resolved.to_dict())).resolve(name) == resolved
    except RegistryErrors as errors:
        assert errors.errors and all(str(error) for error in errors.errors)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(data=VALUES, where=st.sampled_from(PLACES.split()))
def test_whatever_stands_in_a_place_only_our_errors_are_raised(
    load: Callable[..., Registry], data: Any, where: str
) -> None:
    file: dict[str, Any] = {
        "schema_version": 1,
        "components": {"policy": {"lm": {"use": "causal-lm", "config": {"model": "m"}}},
                       "reward": {"r": {"use": "keywords", "config": {}}}, "optimizer": {"o": {"use": "ppo"}}},
        "pipelines": {"p": {"policy": "lm", "stages": [{"optimize": {"optimizer": "o", "rewards": {"r": 1}}}]}},
    }  # fmt: skip
    places: dict[str, tuple[Any, Any]] = {
        "reward": (file["components"], "reward"), "declaration": (file["components"]["reward"], "r"),
        "config": (file["components"]["reward"]["r"], "config"), "pipeline": (file["pipelines"], "p"),
        "stages": (file["pipelines"]["p"], "stages"), "stage": (file["pipelines"]["p"]["stages"], 0),
        "override": (file["pipelines"]["p"], "override"),
    }  # fmt: skip
    holder, key = places.get(where, (file, where))
    holder[key] = data
    try:
        registry = load(json.dumps(file))
        registry.problems()
        registry.resolve("p", [("stages.optimize.steps", data), ("seed", data)])
    except RegistryErrors as errors:
        assert str(errors)
