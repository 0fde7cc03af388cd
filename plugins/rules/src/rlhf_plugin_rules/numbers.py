"""Numbers as people write them: 1,234.5  -3/4  50 %  1.2e5  \\frac{1}{2}  3.5万  and full-width １２.

Values are exact fractions, so that 1/3 is 1/3 and 0.1 + 0.2 is 0.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import regex

LONGEST = 100
"""Characters of a number, and its largest power of ten; what is longer was not meant as one."""

WIDTH = str.maketrans(
    {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)} | {"\u3000": " ", "−": "-", "﹣": "-", "–": "-"}
)
"""Full-width forms and other minus signs to ASCII, one character for one, so that places stay."""

_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
_NUMBER = regex.compile(
    r"(?<![A-Za-z0-9_.])(?:(?<![)\]}])(?P<sign>[-+]))?"
    r"(?:\\[dt]?frac(?:\{(?P<over>-?[0-9.]+)\}\{(?P<under>[0-9.]+)\}|(?P<over>[0-9])(?P<under>[0-9]))"
    rf"|(?P<whole>{_DECIMAL})"
    r"(?:[eE](?P<power>[-+]?[0-9]+)|[ ]?(?:×|\\times|\*)[ ]?10[ ]?\^[ ]?\{?(?P<power>[-+]?[0-9]+)\}?)?"
    rf"(?:[ ]?/[ ]?(?P<under>{_DECIMAL}))?)"
    r"(?:[ ]?(?P<unit>\\?%|万|亿))?"
)
_MIXED = regex.compile(r"(?P<sign>[-+])?(?P<whole>[0-9]+) (?P<over>[0-9]+)/(?P<under>[0-9]+)")
_UNITS = {"%": Fraction(1, 100), "\\%": Fraction(1, 100), "万": Fraction(10**4), "亿": Fraction(10**8)}
_TEXT = regex.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")
# what LaTeX and money put around a number without changing it
_DRESS = regex.compile(r"\^\{?\\circ\}?|°|\\(?:left|right|quad)\b|\\[$,!; ()\[\]]|[$¥￥€£]|\*\*")
_CALCULATION = regex.compile(r"[\\^√π*+<>±≤≥≈~]")
_UNKNOWN = regex.compile(r"[0-9}][nxyz]\b")


def fold(text: str) -> str:
    """`text` with full-width letters, digits and marks as ASCII; as long as before."""
    return text.translate(WIDTH)


def undressed(text: str) -> str:
    """Folded `text` with the words in ``\\text{...}`` and its like as plain words."""
    plain: str = _TEXT.sub(r"\1", fold(text))
    return plain


def numbers(text: str) -> Iterator[tuple[int, int, Fraction]]:
    """Every number in folded `text` as (start, end, value)."""
    for match in _NUMBER.finditer(text):
        value = _value(match)
        if value is not None:
            yield match.start(), match.end(), value


def parse_number(text: str) -> Fraction | None:
    """The one number that `text` states, with a unit, a currency or a name perhaps: "x = 42 km".

    None if there is none, if there are several different ones, or if something is still unknown ("2^3", "2x").
    """
    plain = _DRESS.sub(" ", undressed(text).replace("{,}", ",").replace("\\!", "")).strip()
    if mixed := _MIXED.fullmatch(plain):
        fraction = _fraction(mixed["over"], mixed["under"])
        whole = _fraction(mixed["whole"], "1")
        if fraction is None or whole is None:
            return None
        return (whole + fraction) * (-1 if mixed["sign"] == "-" else 1)
    found = list(numbers(plain))
    ends = [0, *(end for _, end, _ in found)]
    rest = " ".join(plain[end:start] for end, start in zip(ends, [*(f[0] for f in found), len(plain)], strict=True))
    values = {value for _, _, value in found}
    if len(values) != 1 or _CALCULATION.search(rest) or _UNKNOWN.search(plain):
        return None
    return values.pop()


def _value(match: regex.Match[str]) -> Fraction | None:
    value, power = _fraction(match["whole"] or match["over"], match["under"] or "1"), match["power"] or "0"
    if value is None or len(power) > 4 or abs(int(power)) > LONGEST:
        return None
    value *= Fraction(10) ** int(power) * _UNITS.get(match["unit"] or "", Fraction(1))
    return -value if match["sign"] == "-" else value


def _fraction(over: str, under: str) -> Fraction | None:
    if len(over) + len(under) > LONGEST:
        return None
    try:
        return Fraction(over.replace(",", "")) / Fraction(under.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None
