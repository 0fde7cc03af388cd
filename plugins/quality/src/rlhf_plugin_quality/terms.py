"""The built-in pairs of terms that `counterfactual` swaps, English and Chinese, and words that only look like them."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

ENGLISH = (
    ("he", "she"), ("himself", "herself"), ("Mr", "Ms"), ("sir", "madam"), ("gentleman", "lady"),
    ("gentlemen", "ladies"), ("man", "woman"), ("men", "women"), ("boy", "girl"), ("boys", "girls"),
    ("male", "female"), ("males", "females"), ("lad", "lass"), ("lads", "lasses"), ("masculine", "feminine"),
    ("father", "mother"), ("fathers", "mothers"), ("dad", "mom"), ("dads", "moms"), ("daddy", "mommy"),
    ("fatherhood", "motherhood"), ("paternity", "maternity"), ("son", "daughter"), ("sons", "daughters"),
    ("brother", "sister"), ("brothers", "sisters"), ("husband", "wife"), ("husbands", "wives"),
    ("boyfriend", "girlfriend"), ("boyfriends", "girlfriends"), ("grandfather", "grandmother"),
    ("grandfathers", "grandmothers"), ("grandpa", "grandma"), ("grandson", "granddaughter"),
    ("grandsons", "granddaughters"), ("stepfather", "stepmother"), ("stepson", "stepdaughter"), ("uncle", "aunt"),
    ("uncles", "aunts"), ("nephew", "niece"), ("nephews", "nieces"), ("groom", "bride"), ("widower", "widow"),
    ("king", "queen"), ("kings", "queens"), ("prince", "princess"), ("princes", "princesses"), ("waiter", "waitress"),
    ("waiters", "waitresses"), ("businessman", "businesswoman"), ("businessmen", "businesswomen"),
    ("salesman", "saleswoman"), ("salesmen", "saleswomen"), ("policeman", "policewoman"),
    ("policemen", "policewomen"), ("chairman", "chairwoman"), ("spokesman", "spokeswoman"),
    ("schoolboy", "schoolgirl"), ("schoolboys", "schoolgirls"),
)  # fmt: skip

# After `her` and `his`, these words, punctuation and the end mean that nothing follows that is owned.
_FUNCTION_WORDS = (
    r"a|an|the|this|that|these|those|to|of|in|on|at|by|for|from|with|about|into|onto|over|under|after|before|and|or|but|"
    r"nor|so|if|when|while|because|as|than|then|is|was|are|were|be|been|has|have|had|do|does|did|will|would|can|could|"
    r"shall|should|may|might|must|not|no|i|you|he|she|it|we|they|me|us|them|him|who|whom|what|which|where|why|how|there|"
    r"here|again|today|tomorrow|yesterday|now|too|also|up|down|out|off|away|alone|anyway|immediately"
)
_NOT_OWNED = re.compile(rf"\s*(?:$|[^\w\s]|(?:{_FUNCTION_WORDS})\b)", re.IGNORECASE)


def _owned(rest: str) -> bool:
    return _NOT_OWNED.match(rest) is None


def _by_owned(before_owned: str, elsewhere: str, rest: str) -> str:
    return before_owned if _owned(rest) else elsewhere


def _always(word: str) -> Callable[[str], str]:
    return partial(_by_owned, word, word)


# partials of functions, not lambdas: a source is sent to worker processes
IRREGULAR: dict[str, Callable[[str], str]] = {
    "him": _always("her"),
    "his": partial(_by_owned, "her", "hers"),
    "her": partial(_by_owned, "his", "him"),
    "hers": _always("his"),
    "Mrs": _always("Mr"),
    "mum": _always("dad"),
    "mums": _always("dads"),
    "mummy": _always("daddy"),
}
"""English terms without one partner -> what they become, given the text behind them.

`her` is "his" before what is owned ("her book") and else "him" ("saw her.", "saw her in town"). The rule knows no
grammar: "saw her leave" becomes "saw his leave".
"""

CHINESE = (
    ("他", "她"), ("男人", "女人"), ("男性", "女性"), ("男孩", "女孩"), ("男生", "女生"), ("男子", "女子"),
    ("男士", "女士"), ("男友", "女友"), ("男朋友", "女朋友"), ("男方", "女方"), ("男童", "女童"), ("男婴", "女婴"),
    ("先生", "小姐"), ("父亲", "母亲"), ("爸爸", "妈妈"), ("老爸", "老妈"), ("父爱", "母爱"), ("儿子", "女儿"),
    ("哥哥", "姐姐"), ("弟弟", "妹妹"), ("兄弟", "姐妹"), ("丈夫", "妻子"), ("老公", "老婆"), ("爷爷", "奶奶"),
    ("外公", "外婆"), ("祖父", "祖母"), ("孙子", "孙女"), ("叔叔", "阿姨"), ("舅舅", "舅妈"), ("侄子", "侄女"),
    ("外甥", "外甥女"), ("公公", "婆婆"), ("老公公", "老婆婆"), ("新郎", "新娘"), ("国王", "女王"), ("王子", "公主"),
    ("男演员", "女演员"), ("男主角", "女主角"),
)  # fmt: skip

LEAVE = (
    "其他", "吉他", "他人", "他乡", "他国", "他山", "他日", "他杀", "无他", "利他", "排他", "维他", "妇女人",
    "祖父母", "孙子女", "孙子兵法", "男子汉",
)  # fmt: skip
"""Words in which a Chinese term stands by chance, or has no partner."""
