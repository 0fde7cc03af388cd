"""Options of the judge. Light: imports neither torch nor an HTTP client."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, field_validator
from rlhf_core.interfaces import Config, FeedbackRef, RelativePath

CRITERIA = (
    "A good reply helps with what was asked, says nothing false, admits what it does not know, harms nobody, "
    "and is no longer than it needs to be."
)


class JudgeSettings(Config):
    """Which model judges, by what, and how it is asked."""

    model_config = ConfigDict(hide_input_in_errors=True)  # an error's input would show the key

    url: str = Field(description="where the API is, such as https://api.openai.com/v1; best given as ${env:NAME}")
    key: str | None = Field(
        default=None, repr=False, description="bearer token, always given as ${env:NAME}; empty or none: none is sent"
    )
    model: str = Field(min_length=1, description="the model's name at that endpoint")
    criteria: str = Field(default=CRITERIA, min_length=1, description="what makes a reply good, in plain words")
    temperature: float | None = Field(default=0.0, ge=0, description="of the judge's answer; null: not sent")
    max_tokens: int | None = Field(default=64, ge=1, description="of the judge's answer; null: not sent")
    extra: dict[str, Any] = Field(
        default_factory=dict, description="further fields of the request, such as response_format or reasoning_effort"
    )
    timeout: float = Field(default=60.0, gt=0, description="seconds to wait for an answer, at each attempt")
    retries: int = Field(
        default=5, ge=0, description="further attempts after a timeout, a broken connection, HTTP 408, 409, 429 or 5xx"
    )
    concurrency: int = Field(default=8, ge=1, le=256, description="questions asked at the same time")
    cache: RelativePath | None = Field(
        default=None, description="a JSONL file that keeps answers; by default judge.jsonl in the run directory"
    )
    on_failure: Literal["raise", "abstain"] = Field(
        default="raise", description="if no answer comes after all attempts: stop, or abstain and count"
    )

    @field_validator("url")
    @classmethod
    def _an_endpoint(cls, url: str) -> str:
        parts = urlsplit(url.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("no http:// or https:// address; write one such as https://api.openai.com/v1")
        _ = parts.port  # raises ValueError for one that cannot be
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("has a user, password, ? or # in it; give the bare address, and a token as `key`")
        return url.strip().rstrip("/")

    @field_validator("key")
    @classmethod
    def _a_header(cls, key: str | None) -> str | None:
        key = (key or "").strip()
        if not all("!" <= character <= "~" for character in key):
            raise ValueError("has white space or characters beyond ASCII, which no header carries; copy it again")
        return key or None

    @field_validator("extra")
    @classmethod
    def _ours_stay(cls, extra: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(extra.keys() & {"model", "messages", "temperature", "max_tokens", "stream", "n"}):
            raise ValueError(f"{taken[0]!r} cannot be set here; the judge sets it, or has an option of that name")
        return extra


class JudgeRewardConfig(JudgeSettings):
    """A reward between 0 and 1 that a language model gives."""

    mode: Literal["rating", "pairwise"] = Field(
        default="rating", description="rate each response, or compare it with the one in the prompt's field `against`"
    )
    scale: tuple[float, float] = Field(default=(1, 10), description="lowest and highest rating; mapped to 0 and 1")
    against: str = Field(default="reference", description="the prompt field with the response to compare with")
    on_disagreement: Literal["average", "abstain"] = Field(
        default="average", description="if the verdict changes with the order of the two: average both, or abstain"
    )

    @field_validator("scale")
    @classmethod
    def _upwards(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if scale[0] >= scale[1]:
            raise ValueError(f"a scale goes from low to high, got {scale[0]:g} to {scale[1]:g}")
        return scale


class JudgeFeedbackConfig(JudgeSettings):
    """Comparisons of another source, with the judge's order in place of theirs."""

    feedback: FeedbackRef = Field(description="a source of comparisons; their own order is not read")
    on_disagreement: Literal["drop", "tie"] = Field(
        default="drop", description="if the verdict changes with the order of the two: drop the pair, or make it a tie"
    )
