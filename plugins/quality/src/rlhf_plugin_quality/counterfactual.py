"""The feedback source `counterfactual`: each record also with the terms of each pair swapped.

Counterfactual data augmentation (Lu et al., 2018, arXiv:1807.11714; Zmigrod et al., 2019, arXiv:1906.04571): a reward
that sees the same judgement about both twins has no reason to prefer either term.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import PrivateAttr, ValidationError
from rlhf_core.errors import DataError
from rlhf_core.interfaces import Context, FeedbackSource
from rlhf_core.records import Comparison, Demonstration, Edit, Feedback, Keywords, Message, Prompt, Rating, Sentiment

from .config import CounterfactualConfig
from .swaps import Swapped, Swapper
from .terms import CHINESE, ENGLISH, IRREGULAR, LEAVE


class TwinPrompt(Prompt):
    """A swapped prompt. It is held out where the prompt it was made of is, so that no twin leaks into training."""

    _original: Prompt = PrivateAttr()

    def in_share(self, share: float) -> bool:
        return self._original.in_share(share)


class Counterfactual(FeedbackSource[CounterfactualConfig]):
    """Every record of other sources and, where a term is in it, its twin with all terms swapped.

    Swapped are the prompt with its text fields, and whatever the record says of responses; scores, ranks, labels,
    annotator and weight are the same. A twin whose two responses would become one text is left out.
    """

    def __init__(self, config: CounterfactualConfig, context: Context) -> None:
        super().__init__(config, context)
        self._feedback: list[FeedbackSource[Any]] = [context.component("feedback", id) for id in config.feedback]
        english = config.language in ("en", "both")
        if config.swaps is not None:
            self._swap = Swapper(config.swaps, (*LEAVE, *config.leave))
        else:
            pairs = [*(ENGLISH if english else ()), *(CHINESE if config.language in ("zh", "both") else ())]
            self._swap = Swapper(pairs, (*LEAVE, *config.leave), IRREGULAR if english else None)

    def __iter__(self) -> Iterator[Feedback]:
        found = False
        for source in self._feedback:
            for record in source:
                found = True
                swapped = twin(record, self._swap)
                if swapped is None or self.config.keep_original:
                    yield record
                if swapped is not None:
                    yield swapped
        if not found:
            names = ", ".join(self.config.feedback)
            raise DataError(self.context.where, f"{names} gives no feedback", "at least one record", "check the source")


def twin(record: Feedback, swap: Swapper) -> Feedback | None:
    """`record` swapped; None if that changes neither its prompt nor its responses, or makes two responses one."""
    prompt, prompt_changed = _prompt(record.prompt, swap)
    changes, changed = _changes(record, swap)
    if not (prompt_changed or changed):
        return None
    data = {name: getattr(record, name) for name in type(record).model_fields}
    try:
        return type(record).model_validate({**data, **changes, "prompt": prompt})
    except ValidationError:  # "him" and "his" before the same word both become "her"
        return None


def _prompt(prompt: Prompt, swap: Swapper) -> tuple[Prompt, bool]:
    if isinstance(prompt.text, str):
        text: Any = swap(prompt.text).text
    else:
        text = tuple(Message(role=message.role, content=swap(message.content).text) for message in prompt.text)
    swapped = TwinPrompt(text=text, fields=_value(prompt.fields, swap))
    swapped._original = prompt
    return swapped, text != prompt.text


def _value(value: Any, swap: Swapper) -> Any:
    """Text inside a field swapped: references and answers have to fit the swapped prompt."""
    if isinstance(value, str):
        return swap(value).text
    if isinstance(value, dict):
        return {key: _value(item, swap) for key, item in value.items()}
    return [_value(item, swap) for item in value] if isinstance(value, list) else value


def _changes(record: Feedback, swap: Swapper) -> tuple[dict[str, Any], bool]:
    """The swapped values by name of the field, and whether a text among them differs."""
    match record:
        case Rating() | Demonstration():
            response = swap(record.response)
            return {"response": response.text, "spans": _spans(record.spans, response)}, response.changed
        case Sentiment():
            texts: dict[str, Any] = {"response": record.response}
        case Comparison():
            texts = {"responses": record.responses}
        case Edit():
            texts = {"original": record.original, "edited": record.edited}
        case Keywords():
            texts = {"response": record.response, "wanted": record.wanted, "unwanted": record.unwanted}
    swapped = {name: _texts(value, swap) for name, value in texts.items()}
    return swapped, swapped != texts


def _texts(value: Any, swap: Swapper) -> Any:
    if isinstance(value, tuple):
        return tuple(swap(text).text for text in value)
    return None if value is None else swap(value).text


def _spans(spans: Iterable[Any], swapped: Swapped) -> tuple[Any, ...]:
    """The spans where their characters went; one that lay inside a term and has no room left is dropped."""
    moved = [
        span.model_copy(update={"start": swapped.offset(span.start), "end": swapped.offset(span.end)}) for span in spans
    ]
    return tuple(span for span in moved if span.end > span.start)
