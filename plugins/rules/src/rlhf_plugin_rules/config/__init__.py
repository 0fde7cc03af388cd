"""Options of the rules and of their feedback sources. Light: imports no torch."""

from .checks import AnswerConfig, FactualConfig, FormatConfig
from .learned import CoherenceRewardConfig, SentimentRewardConfig
from .models import ClassifierConfig, MetricConfig
from .sources import KeywordFeedbackConfig, SentimentFeedbackConfig
from .surface import KeywordsConfig, LengthConfig, RegexConfig, RepetitionConfig

__all__ = [
    "AnswerConfig",
    "ClassifierConfig",
    "CoherenceRewardConfig",
    "FactualConfig",
    "FormatConfig",
    "KeywordFeedbackConfig",
    "KeywordsConfig",
    "LengthConfig",
    "MetricConfig",
    "RegexConfig",
    "RepetitionConfig",
    "SentimentFeedbackConfig",
    "SentimentRewardConfig",
]
