"""The interfaces that plugins implement. Shapes use B samples, T response positions, K candidates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeAlias, TypeVar, get_args

from ..records import Demonstration, Feedback, Prompt, Rollout, Sample, Scores
from .config import Config, Needs, Sampling
from .schedule import Schedule, value_at

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from .context import Context
    from .supervised import SupervisedTask

State: TypeAlias = dict[str, Any]
"""Nested dicts and lists of tensors and JSON scalars: what a checkpoint can hold."""

StepStats: TypeAlias = dict[str, float]
"""Named numbers of one step, such as ``{"kl/sequence": 0.8}``; the runner logs them."""

C = TypeVar("C", bound=Config)


class Component(ABC, Generic[C]):
    """Base of all components: ``Class(config, context)``.

    ``class Mine(RewardModel[MyConfig])`` sets `Mine.Config`. What has state overrides `state_dict` and
    `load_state_dict`; the checkpoint and exact resume follow from them.
    """

    Config: ClassVar[type[Config]]

    def __init__(self, config: C, context: Context) -> None:
        self.config = config
        self.context = context
        self.progress = (0, 1)  # step, from 0, and number of steps; whoever drives the component keeps it

    def now(self, option: float | Schedule) -> float:
        """The value at this step of an option that may be a schedule."""
        return value_at(option, *self.progress)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in cls.__dict__.get("__orig_bases__", ()):  # not those that a base class was written with
            for argument in get_args(base):
                if isinstance(argument, type) and issubclass(argument, Config):
                    cls.Config = argument

    def state_dict(self) -> State:
        """Everything that changes while the component works; nested tensors and JSON scalars."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""


# --- where data comes from -------------------------------------------------------------------------------------------


class FeedbackSource(Component[C]):
    """Yields typed feedback records, streaming; iterating again starts from the beginning.

    A bad row raises `DataError` with its file and line, or is counted in `skipped` where the config says so.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__iter__" in cls.__dict__:
            cls.__iter__ = _told(cls.__dict__["__iter__"])  # type: ignore[method-assign]

    streaming: ClassVar[bool] = True
    """Whether records come while the data is still being read; False where all of it has to be seen first."""
    skipped: int = 0

    @abstractmethod
    def __iter__(self) -> Iterator[Feedback]: ...


def _told(read: Callable[[Any], Iterator[Feedback]]) -> Callable[[Any], Iterator[Feedback]]:
    """`read`, an ``__iter__``, that tells the run of every record: its manifests say who made what it learnt from."""

    @wraps(read)
    def __iter__(self: Any) -> Iterator[Feedback]:
        if self.context.seen is None:
            return read(self)
        return _telling(read(self), self.context)

    return __iter__


def _telling(records: Iterator[Feedback], context: Context) -> Iterator[Feedback]:
    assert context.seen is not None
    for place, record in enumerate(records):
        context.seen(context.id, place, record)
        yield record


class PromptSource(Component[C]):
    """An indexed collection of prompts; the order in which they are used is derived from the run's seed."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Prompt: ...


# --- from feedback to reward -----------------------------------------------------------------------------------------


class RewardModel(Component[C]):
    """Scores responses. Text in, numbers out: the tokenizer, if any, is its own.

    A model that shares the policy's tokenizer may read `Sample.response_ids` instead of tokenising again.
    """

    def task(self, feedback: Iterable[Feedback]) -> SupervisedTask | None:
        """What to train by gradient on `feedback`; None if the model learns otherwise (`fit`) or not at all."""
        return None

    def fit(self, feedback: Iterable[Feedback]) -> StepStats:
        """Learn from `feedback` in one go and return metrics; for models that `task` gives nothing for."""
        from ..errors import ConfigError

        raise ConfigError(self.context.where, "does not learn from feedback", fix="leave out its fit-reward stage")

    @abstractmethod
    def score(self, samples: Sequence[Sample]) -> Scores:
        """One finite score per sample, whatever the batch they come in."""


class OnlineReward(RewardModel[C]):
    """A reward that learns while the policy does, such as a discriminator."""

    @abstractmethod
    def update(
        self, rollout: Rollout, score_logprobs: Callable[[Sequence[Sample]], tuple[Tensor, Tensor]]
    ) -> StepStats:
        """Learn from this step's rollout, before it is scored.

        `score_logprobs(samples)` gives policy and reference log-probabilities, each (B,), summed over the response.
        Over several processes each is given its own share of the rollout.
        """


class RewardShaper(Component[C]):
    """Changes rewards between the reward models and the optimizer.

    `level` says what it maps: "sequence" scores (B,), or "token" rewards (B, T). Sequence shapers run first.
    """

    level: ClassVar[Literal["sequence", "token"]]
    zero_stays_zero: ClassVar[bool] = False
    """Whether rewards that are all 0 stay 0, however it is configured and whatever it was given before."""

    @abstractmethod
    def shape(self, rewards: Tensor, rollout: Rollout) -> tuple[Tensor, StepStats]:
        """The changed rewards, and what to log.

        Token rewards are 0 outside ``rollout.mask`` and must stay so. Abstained samples (``rollout.abstained``) have
        score 0 and must not enter statistics.
        """


# --- the policy ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a policy computes for a rollout, (B, T) unless said otherwise; None where not needed, 0 in padding.

    logprobs at the rollout's temperature; values before each token; bootstrap (B,); entropy in nats;
    top_ids and top_logprobs (B, T, K). distribution (B, T, V): log-probabilities of the whole vocabulary. hidden
    (B, T, D): the states before each token, which `Policy.heads` read.
    """

    logprobs: Tensor
    values: Tensor | None = None
    bootstrap: Tensor | None = None
    entropy: Tensor | None = None
    top_ids: Tensor | None = None
    top_logprobs: Tensor | None = None
    distribution: Tensor | None = None
    hidden: Tensor | None = None


class Policy(Component[C]):
    """A language model that acts and can be improved."""

    critic: Literal["none", "shared", "adapter", "separate"] = "none"
    """Where values come from: the policy's own trunk, an adapter of their own on its base, or a trunk of their own."""
    steering: float = 0.0
    """Where it is not 0 the policy acts and is evaluated as softmax(logits + steering * min over `heads` of Q(s, .));
    the reference is never steered. Part of the policy's state."""
    rounding: float = 1e-4
    """By how much, in nats, log-probabilities of one token may differ between ways to compute them: with and without a
    cache, alone and among others, as it is and exported. 1e-4 is float32's; the conformance kit holds it to this."""
    auto_head: str = "CausalLM"
    """What exported weights are loaded with: transformers' AutoModelFor..., peft's AutoPeftModelFor..."""

    @property
    def heads(self) -> Sequence[nn.Module]:
        """Action-value heads, made by `prepare`: each maps `Outputs.hidden` (..., D) to Q(s, .) (..., V)."""
        return ()

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """All parameters, value head included; those to train require gradients."""

    @property
    @abstractmethod
    def value_parameters(self) -> list[nn.Parameter]:
        """The trainable parameters that only values depend on; empty without a critic."""

    @abstractmethod
    def prepare(self, needs: Needs) -> None:
        """Make the heads that `needs` asks for; called before an optimizer is bound, harmless when called again."""

    def start_critic(self, trunk: nn.Module, head: nn.Linear) -> None:
        """Let the critic begin as a copy of `trunk` (a transformers model without heads) with `head` (D -> 1); called
        after `prepare`."""
        from ..errors import ConfigError

        raise ConfigError(self.context.where, "its critic cannot be given", fix="use causal-lm with critic: separate")

    @abstractmethod
    def set_reference(self, source: str) -> None:
        """Fix the reference: "stage-start" (the policy as it is now), "base" (before any training), or a path that
        `save_reference` wrote or a model folder."""

    @abstractmethod
    def save_reference(self, directory: Path) -> None:
        """Write the reference, so that a resumed run can `set_reference` it."""

    @abstractmethod
    def as_reference(self) -> AbstractContextManager[None]:
        """Inside, the reference generates and evaluates in the policy's stead; no gradient may be taken. Nests."""

    @abstractmethod
    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, seed: int, sample_ids: Sequence[int] | None = None
    ) -> Rollout:
        """Draw one response per prompt, recording the log-probability of every token as it is drawn.

        Args:
            prompts: B prompts, repeated by the caller for several samples each.
            seed: of this step's stream; sample b draws from (seed, sample_ids[b], position) alone.
            sample_ids: B numbers, by default 0 to B-1.
        """

    @abstractmethod
    def encode(self, samples: Sequence[Sample], *, temperature: float = 1.0) -> Rollout:
        """Given texts as a rollout, each response closed by end of text, its log-probabilities under today's policy."""

    @abstractmethod
    def forward(self, rollout: Rollout, needs: Needs) -> Outputs:
        """Evaluate the rollout's tokens under today's weights, without dropout; differentiable if gradients are on."""

    @abstractmethod
    def token_ends(self, response_ids: Sequence[int]) -> list[int]:
        """For each token, how many characters of the decoded response are complete once it is there."""

    @abstractmethod
    def demonstrations(self, records: Iterable[Demonstration], *, held_out: float) -> SupervisedTask:
        """The task of imitating demonstrations: the language-model loss on response tokens, weighted as they say."""

    @abstractmethod
    def export(self, directory: Path, *, adapters: bool = False) -> None:
        """Write a plain Hugging Face model folder that needs nothing of ours to be loaded: the whole model, or only its
        adapters in peft's format."""

    def gather(self) -> None:
        """Called in every process before one of them exports: the time to put together what is shared out over them."""

    @property
    def exported_from(self) -> str | None:
        """What exported weights were made from if not from weights as precise as they are; None: nothing was lost."""
        return None

    @property
    def parameter_count(self) -> int:
        """All parameters of the language model and its critic."""
        return sum(p.numel() for p in self.module.parameters())

    def weights_changed(self) -> None:
        """To be called by whoever edits weights directly, so that copies of them are made anew."""


# --- improving it ----------------------------------------------------------------------------------------------------


class TrainingData(ABC):
    """What an optimizer asks for data, on its own terms."""

    step: int

    @property
    @abstractmethod
    def sampling(self) -> Sampling:
        """How the stage draws responses at this step."""

    @abstractmethod
    def prompts(self, count: int) -> list[Prompt]:
        """The next `count` prompts in the run's order."""

    @abstractmethod
    def rollout(
        self,
        prompts: int | Sequence[Prompt],
        *,
        samples_per_prompt: int = 1,
        needs: Needs | None = None,
        sampling: Sampling | None = None,
    ) -> Rollout:
        """Sample responses to the next so many prompts (or these), score and shape them.

        `needs` and `sampling` are by default the bound optimizer's and the stage's. Samples of one prompt lie side by
        side. Over several processes everyone gets the whole batch.
        """

    @abstractmethod
    def rescore(self, rollout: Rollout, needs: Needs | None = None) -> Rollout:
        """The same samples with log-probabilities, values and the like under today's policy."""

    @abstractmethod
    def feedback(self, kind: str | None = None) -> Iterator[Feedback]:
        """Offline records of the stage's feedback sources, all or of one kind ("comparison", "rating", ...)."""


@dataclass(frozen=True)
class Traits:
    """What kind of algorithm an optimizer is; the conformance kit binds its checks to it.

    learns_from: today's samples ("on-policy"), earlier ones as well ("off-policy"), or feedback alone ("offline").
    gradient: whether it follows a gradient of a loss; False for evolution. baseline: whether equal rewards for all
    samples leave the policy exactly as it is, as with group means and whitening, and not with a learnt critic.
    rounding: what rounding in float32 may change of a step, relative to its size; more where a step solves equations.
    """

    learns_from: Literal["on-policy", "off-policy", "offline"]
    gradient: bool = True
    baseline: bool = False
    rounding: float = 1e-5


class PolicyOptimizer(Component[C]):
    """Improves a policy, one `step` at a time."""

    policy: Policy[Any]
    total_steps: int

    @property
    @abstractmethod
    def traits(self) -> Traits:
        """What kind of algorithm this is, as configured."""

    def bind(self, policy: Policy[Any], total_steps: int) -> None:
        """Take charge of `policy` for `total_steps` steps; called once, before the first step."""
        self.policy, self.total_steps = policy, total_steps

    @abstractmethod
    def step(self, data: TrainingData) -> StepStats:
        """Ask `data` for what it needs and improve the bound policy."""


class Environment(Component[C]):
    """Turns prompts into rollouts: one answer each, or a conversation with holes in the mask."""

    @abstractmethod
    def rollout(
        self,
        policy: Policy[Any],
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        seed: int,
        sample_ids: Sequence[int],
    ) -> Rollout:
        """Let `policy` act on each prompt; arguments as in `Policy.generate`."""


# --- judging it ------------------------------------------------------------------------------------------------------


class Metric(Component[C]):
    """Measures finished responses, one number per sample, so that means come with intervals."""

    higher_is_better: ClassVar[bool | None] = True
    """None where neither is better."""

    @abstractmethod
    def measure(self, rollout: Rollout) -> Tensor:
        """(B,) float; nan where it does not apply."""
