"""Options of the rewards that a library computes: text metrics and transformers classifiers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from rlhf_core.interfaces import Config, ModelName


class MetricConfig(Config):
    """How like its reference a response is, from 0 to 1."""

    metric: Literal["bleu", "chrf", "rouge1", "rouge2", "rougeL"] = Field(
        description="BLEU or chrF as sacrebleu has them, or the F-measure of ROUGE as rouge-score has it"
    )
    reference: str = Field(
        default="reference", min_length=1, description="field of the prompt with the reference: text, or several texts"
    )
    tokenizer: Literal["auto", "13a", "zh", "char"] = Field(
        default="auto", description="sacrebleu's tokenizer for BLEU; auto: by the script of the reference"
    )
    on_missing: Literal["raise", "abstain"] = Field(
        default="raise", description="stop at a prompt without a reference, or have no opinion on its responses"
    )

    @model_validator(mode="after")
    def _tokenizer_is_used(self) -> MetricConfig:
        if self.tokenizer != "auto" and self.metric != "bleu":
            raise ValueError(f"only bleu asks for a tokenizer, {self.metric} does not; leave out `tokenizer`")
        return self


class ClassifierConfig(Config):
    """What a transformers sequence classifier gives to one of its labels."""

    model: ModelName = Field(description="folder or hub id of a model with a classification head")
    label: str | Annotated[int, Field(ge=0)] = Field(description="the label to reward: its name or its index")
    revision: str | None = Field(default=None, description="commit or tag on the hub")
    trust_remote_code: bool = Field(default=False, description="run code that comes with the model; off for a reason")
    of: Literal["response", "prompt-response"] = Field(
        default="response",
        description="what is read: the response alone, or prompt and response as the model pairs them",
    )
    value: Literal["probability", "logit"] = Field(
        default="probability", description="the label's probability, or its logit, which has no bounds"
    )
    max_tokens: int = Field(
        default=512, ge=8, description="longest text; of a longer one the prompt's beginning is cut, then the response"
    )
    micro_batch_tokens: int = Field(
        default=8192, ge=1, description="most tokens, padding included, in one forward pass; memory only"
    )
