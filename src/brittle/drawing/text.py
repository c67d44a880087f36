"""Numbers and names as text: as many digits as a number bears, and nothing that a page or a terminal cannot show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from brittle.measures import Mean, Share, mean_of_seeds

DASH = "–"


# Numbers ------------------------------------------------------------------------------------------------------------


def fixed(value: float, digits: int = 1, *, sign: str = "-") -> str:
    """'−9.2', '12 345': so many digits after the point; `sign` as in a format."""
    return f"{value:{sign},.{digits}f}".replace(",", " ").replace("-", "−") if math.isfinite(value) else DASH


def decades(value: float) -> str:
    """'−9.17', '+1.30', '−143.2': a logarithm with its sign."""
    return fixed(value, 2 if abs(value) < 20 else 1, sign="+")


def size(value: float, like: float | None = None) -> str:
    """'1.17', '0.0052', '117': three digits of the largest number that stands beside it."""
    known = abs(value if like is None or not math.isfinite(like) else like)
    digits = max(0, 2 - math.floor(math.log10(known))) if known and math.isfinite(known) else 0
    return fixed(value, min(digits, 8))


def percent(share: Share) -> str:
    """'83', '95.8': percent with as many digits as the images bear; 0 and 100 only where it is so."""
    value, total = share.value, share.total
    if not total:
        return DASH
    digits = 0 if total <= 200 else 1
    while digits < 8 and float(f"{100 * value:.{digits}f}") in (0, 100) and value not in (0, 1):
        digits += 1
    return f"{100 * value:.{digits}f}"


def ends(number: Share | Mean) -> tuple[str, str]:
    """Both ends of its interval: of a share in percent, of a mean in as many digits as the mean."""
    low, high = number.interval
    if isinstance(number, Mean):
        return size(low, number.value), size(high, number.value)
    digits = 0 if number.total <= 200 else 1
    return (f"{100 * low:.{digits}f}", f"{100 * high:.{digits}f}") if number.total else (DASH, DASH)


def interval(number: Share | Mean) -> str:
    """'75 – 89'; a dash if nothing was counted."""
    counted = number.rows if isinstance(number, Mean) else 1
    return " – ".join(ends(number)) if counted else DASH


def with_interval(number: Share | Mean) -> str:
    """'83 % (75 to 89)', '1.17 (1.10 to 1.24)'."""
    value = f"{percent(number)} %" if isinstance(number, Share) else size(number.value)
    return f"{value} ({' to '.join(ends(number))})"


def over_seeds(values: Sequence[float], digits: int) -> str:
    """'7.3 (6.9 to 7.8)': the mean over seeds and its 95 % interval, where there are several."""
    mean = mean_of_seeds(values)
    low, high = mean.interval
    return f"{mean.value:.{digits}f}" + (f" ({low:.{digits}f} to {high:.{digits}f})" if len(values) > 1 else "")


def spread(shares: Sequence[Share]) -> str:
    """'6 to 11 %', or '98 %' if they are all alike."""
    low, high = (percent(choose(shares, key=lambda share: share.value)) for choose in (min, max))
    return f"{low} %" if low == high else f"{low} to {high} %"


def scientific(sign: int, log10: float) -> str:
    """'−2.3e−08', '3.1e−143', '0', 'NaN'."""
    if math.isnan(log10):
        return "NaN"
    if sign == 0 or log10 == -math.inf:
        return "0"
    exponent = math.floor(log10)
    mantissa = f"{10 ** (log10 - exponent):.1f}"
    if mantissa == "10.0":
        mantissa, exponent = "1.0", exponent + 1
    return f"{'−' if sign < 0 else ''}{mantissa}e{'−' if exponent < 0 else '+'}{abs(exponent):02d}"


def power(exponent: int) -> str:
    """'10⁻⁴⁵' for -45: without a formula, so that the page's own font draws it."""
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def duration(seconds: float) -> str:
    """'1 h 05 min', '3 min 20 s', '12 s'."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if whole < 60:
        return f"{whole} s"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {whole % 60:02d} s"


# Names --------------------------------------------------------------------------------------------------------------


def escaped(text: str) -> str:
    """For XML, in text and in attributes; characters that XML forbids are replaced."""
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))


def legible(text: str, length: int = 32) -> str:
    """A name that may be long, cut to fit, and without characters that cannot be shown."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def titled(label: str, title: str, length: int) -> str:
    """A model's title, its label cut to fit; the seed stays."""
    return legible(label, length) + title.removeprefix(label)


def begun(text: str) -> str:
    """As a sentence begins."""
    return text[:1].upper() + text[1:]


def joined(names: Sequence[str], last: str = "and") -> str:
    """'a', 'a and b', 'a, b and c'."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"
