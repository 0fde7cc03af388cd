"""The one supervised loop: behind sft, behind every reward that is trained by gradient, and from plain Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ..errors import DataError, NumericalError
from ..interfaces import Context, LossSum, State, StepStats, SupervisedConfig, SupervisedTask
from ..memory import Part, adapters, checkpointing, lower, within_memory
from ..randomness import derive_seed, permutation, seed_everything
from .batching import parts
from .gradient import GradientSteps, backward, summed


class SupervisedLoop:
    """Trains the parameters of a task, one optimizer step per `step`.

    Batches are drawn without replacement, in an order derived from the seed and the epoch. The loss of a batch is a
    sum over its examples divided by their total count, whatever the micro-batches and processes.

    Raises:
        DataError: the task has no example to train on.
    """

    def __init__(self, task: SupervisedTask, config: SupervisedConfig, context: Context) -> None:
        if not task.train:
            raise DataError(
                context.where,
                "no example is left to train on",
                "at least one",
                "give more feedback, or a smaller held_out share",
            )
        self.task, self.config, self.context = task, config, context
        self.per_epoch = -(-len(task.train) // config.batch_size)
        self.total = self.per_epoch * config.epochs
        parameters = [p for p in task.module.parameters() if p.requires_grad]
        self.gradient = GradientSteps(parameters, config, self.total, context)
        self._sizes = [task.size(example) for example in task.train]
        self._at_work: list[int] = []

    def step(self, index: int) -> StepStats:
        """Optimizer step `index` of `total`.

        Raises:
            NumericalError: the loss is not finite; the weights are left as they were.
            OutOfMemory: a part of the batch does not fit; the weights are left as they were.
        """
        task, config = self.task, self.config
        epoch, place = divmod(index, self.per_epoch)
        order = permutation(derive_seed(self.context.seed, self.context.where, "epoch", epoch), len(task.train))
        rows = order[place * config.batch_size : (place + 1) * config.batch_size]
        count = sum(task.count(task.train[row]) for row in rows)
        mine = parts(self._sizes, config.micro_batch_tokens, rows, self.context.accelerator)
        task.module.train()
        try:
            with within_memory(self.context, "supervised step", self._part, self._advice(), self.gradient.clear):
                sums = backward(self._losses(mine), count)
        finally:
            task.module.eval()
        sums = summed(sums, self.context.accelerator)
        try:
            with within_memory(self.context, "AdamW step", "the weights", self._advice()):
                taken = self.gradient.step()
            return {**sums, **taken, "epoch": (index + 1) / self.per_epoch}
        except NumericalError as error:
            error.got += f", loss {sums.get('loss')}"
            raise

    def evaluate(self) -> StepStats:
        """Metrics on held-out examples; nothing if none were kept out."""
        self.task.module.eval()
        examples = self.task.held_out
        if not examples:
            return {}
        self._at_work = []
        what = f"{len(examples)} held-out examples"
        with within_memory(self.context, "evaluation", what, self._advice()):
            return self.task.evaluate(examples)

    def _losses(self, mine: Iterable[tuple[list[int], float]]) -> Iterator[LossSum]:
        for self._at_work, weight in mine:
            loss = self.task.loss([self.task.train[row] for row in self._at_work])
            stats = loss.stats if weight else dict.fromkeys(loss.stats, 0.0)
            yield LossSum(weight * loss.total, weight * loss.count, stats) if weight != 1 else loss

    def _part(self) -> Part:
        """What is at work: so many examples, each padded to the longest."""
        sizes = [self._sizes[row] for row in self._at_work]
        widths = [max(width) for width in zip(*(s if isinstance(s, tuple) else (s,) for s in sizes), strict=True)]
        return Part(len(sizes), sum(widths), what="examples")

    def _advice(self) -> Iterator[str | None]:
        """What to lower where memory is short. The loop knows a module and not whose it is."""
        where, config = self.context.where, self.config
        yield lower("micro_batch_tokens", config.micro_batch_tokens, where, self._part() if self._at_work else None)
        yield lower("max_tokens", getattr(config, "max_tokens", None), where)
        yield checkpointing(config, where)
        yield adapters(config, where)

    def state_dict(self) -> State:
        return self.gradient.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.gradient.load_state_dict(state)


def fit_task(
    task: SupervisedTask,
    config: SupervisedConfig,
    context: Context,
    each: Callable[[int, StepStats], None] = lambda index, stats: None,
) -> StepStats:
    """Run the whole loop and return the held-out metrics: what `RewardModel.fit` of a gradient-trained reward does.

    `each` is called with the index and the statistics of every step.
    """
    loop = SupervisedLoop(task, config, context)
    for index in range(loop.total):
        seed_everything(derive_seed(context.seed, context.where, "fit", index))
        each(index, loop.step(index))
    return loop.evaluate()
