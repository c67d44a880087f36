"""What the numbers say, in plain sentences: only what intervals that do not overlap bear out."""

from __future__ import annotations

from collections.abc import Sequence

from brittle.measures import Share
from brittle.report.contents import BOTH, Model, Report

_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def higher(one: Share, other: Share) -> bool:
    """Whether the 95 % interval of `one` lies wholly above that of `other`."""
    return one.interval[0] > other.interval[1]  # NaN, of no rows, is above nothing


def verdict_sentences(report: Report) -> list[str]:
    """What the attacks show: models that only look robust first and together, then each other one by itself."""
    if not report.models:
        return ["The study has no models."]
    groups: dict[str, list[Model]] = {}
    for model in report.models:
        groups.setdefault(model.label, []).append(model)
    looks = [label for label, models in groups.items() if _only_looks_robust(_pairs(models))]
    sentences = [_looks_robust(looks, [model for label in looks for model in groups[label]])] if looks else []
    others = [label for label in groups if label not in looks]
    others.sort(key=lambda label: not any(higher(exact, float32) for _, float32, exact in _pairs(groups[label])))
    sentences += [_sentence(label, groups[label]) for label in others]
    compared = _against_plain(report.models)
    return [*sentences, *([compared] if compared else [])]


def _pairs(models: Sequence[Model]) -> list[tuple[str, Share, Share]]:
    """Label, float32 success and exact success of every attack that was made in both arithmetics."""
    return [
        (attack.label, attack.found["float32"].success, attack.found["exact"].success)
        for model in models
        for attack in model.attacks
        if all(name in attack.found and attack.found[name].success.total for name in BOTH)
    ]


def _only_looks_robust(pairs: Sequence[tuple[str, Share, Share]]) -> bool:
    """Every attack is clearly stronger when exact; in float32 most images withstand it, exactly most do not."""
    return bool(pairs) and all(
        higher(exact, float32) and float32.value < 0.5 <= exact.value for _, float32, exact in pairs
    )


def _looks_robust(labels: Sequence[str], models: Sequence[Model]) -> str:
    pairs = _pairs(models)
    one = len(labels) == 1
    return (
        f"{joined(labels)} only look{'s' if one else ''} robust: {_attacks(pairs)} {_fool(pairs)} of "
        f"{'its' if one else 'their'} images in float32 and {spread([e for _, _, e in pairs])} in exact arithmetic. "
        f"{'Its' if one else 'Their'} robustness is an artefact of float32."
    )


def _sentence(label: str, models: Sequence[Model]) -> str:
    pairs = _pairs(models)
    if not pairs:
        return f"{label}: {_without_pairs(models)}."
    worse = sum(higher(exact, float32) for _, float32, exact in pairs)
    numbers = (
        f"{_attacks(pairs)} {_fool(pairs)} of its images in float32 and {spread([e for _, _, e in pairs])} in exact "
        "arithmetic"
    )
    if worse:
        part = "" if worse == len(pairs) else f" in {number(worse)} of {number(len(pairs))} comparisons"
        return f"{label} is weaker than float32 shows{part}: {numbers}."
    if any(higher(float32, exact) for _, float32, exact in pairs):
        return f"{label}: {numbers}, where at least one attack is weaker than in float32."
    return f"{label}: the arithmetic makes no difference that these rows could show: {numbers}."


def _without_pairs(models: Sequence[Model]) -> str:
    single = [
        found.success
        for model in models
        for attack in model.attacks
        for found in attack.found.values()
        if found.success.total
    ]
    if single:
        return f"the attacks fool {spread(single)} of its images; float32 and exact arithmetic were not both tried"
    return "no attack is finished yet" if any(model.attacks for model in models) else "it was not attacked"


def _against_plain(models: Sequence[Model]) -> str:
    """Whether models that are defended are harder to fool, computed exactly, than those that are not."""
    plain = [model for model in models if model.temperature == 1 and model.teacher is None]
    defended = [model for model in models if model not in plain]
    plain_labels = list(dict.fromkeys(model.label for model in plain))
    if len(plain_labels) != 1 or not defended:
        return ""
    compared, harder = set(), set()
    for model in defended:
        for other in plain:
            if other.seed != model.seed:
                continue
            shares = {label: exact for label, _, exact in _pairs([other])}
            for label, _, exact in _pairs([model]):
                if label in shares:
                    compared.add(model.label)
                    if higher(shares[label], exact):
                        harder.add(model.label)
    none = [model.label for model in defended if model.label in compared - harder]
    if not none:
        return ""
    names = joined(list(dict.fromkeys(none)), "or")
    return f"In exact arithmetic no attack finds {names} harder to fool than {plain_labels[0]}."


# Words --------------------------------------------------------------------------------------------------------------


def percent(share: Share) -> str:
    """'83', '95.8': percent with as many digits as the rows bear; 0 and 100 only where it is so."""
    value, total = share.value, share.total
    if not total:
        return "–"
    digits = 0 if total <= 200 else 1
    while digits < 8 and float(f"{100 * value:.{digits}f}") in (0, 100) and value not in (0, 1):
        digits += 1
    return f"{100 * value:.{digits}f}"


def bounds(share: Share) -> tuple[str, str]:
    """Both ends of its interval, in percent, in as many digits."""
    digits = 0 if share.total <= 200 else 1
    low, high = share.interval
    return (f"{100 * low:.{digits}f}", f"{100 * high:.{digits}f}") if share.total else ("–", "–")


def spread(shares: Sequence[Share]) -> str:
    """'6 to 11 %', or '98 %' if they are all alike."""
    low, high = (percent(choose(shares, key=lambda share: share.value)) for choose in (min, max))
    return f"{low} %" if low == high else f"{low} to {high} %"


def number(count: int) -> str:
    """'three' for 3; digits above twelve."""
    return _WORDS[count] if count < len(_WORDS) else str(count)


def joined(names: Sequence[str], last: str = "and") -> str:
    """'a', 'a and b', 'a, b and c'."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"


def _attacks(pairs: Sequence[tuple[str, Share, Share]]) -> str:
    labels = list(dict.fromkeys(label for label, _, _ in pairs))
    return labels[0] if len(labels) == 1 else f"the {number(len(labels))} attacks"


def _fool(pairs: Sequence[tuple[str, Share, Share]]) -> str:
    single = len({label for label, _, _ in pairs}) == 1
    return f"fool{'s' if single else ''} {spread([float32 for _, float32, _ in pairs])}"
