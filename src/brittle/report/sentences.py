"""What the numbers say, in plain sentences: only what intervals that do not overlap bear out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from brittle.drawing.text import begun, joined, spread, with_interval
from brittle.measures import Mean, Share, why_not_learned
from brittle.report import claims
from brittle.report.claims import Claim
from brittle.study.kinds.attack import sizes
from brittle.study.kinds.attack.result import BOTH, Attack
from brittle.study.kinds.attack.sizes import NORMS, apart
from brittle.study.kinds.lines import plain, pooled
from brittle.study.kinds.units.cell import Units
from brittle.study.store.results import Model, Report, remembered

FEW = 4  # networks that a sentence can name one by one
_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def higher(one: Share, other: Share) -> bool:
    """Whether the 95 % interval of `one` lies wholly above that of `other`."""
    return one.interval[0] > other.interval[1]  # NaN, of no rows, is above nothing


@remembered
def stated(report: Report) -> list[Claim]:
    """What the study's paper says, and what became of it; empty without a paper."""
    return claims.of(report.paper)(report) if report.paper else []


def not_learned(report: Report) -> list[str]:
    """A sentence for each network that has not learned: nothing is concluded from it."""
    return [
        f"{begun(model.title)} has not learned: {why}. Nothing is concluded from it."
        for model in report.models
        if model.measured and (why := why_not_learned(model.measured.accuracy, model.measured.labels))
    ]


@remembered
def verdict_sentences(report: Report) -> list[str]:
    """Networks that have not learned; then what the attacks show, those that only look robust first and together.

    Of attacks that minimise it says how large the perturbations are, of those within a budget the robust accuracy.
    """
    if not report.models:
        return ["The study has no models."]
    groups: dict[str, list[Model]] = {}
    for model in report.models:
        if model.learned is not False:
            groups.setdefault(model.label, []).append(model)
    looks = [label for label, models in groups.items() if _only_looks_robust(_pairs(models))]
    sentences = [_looks_robust(looks, [model for label in looks for model in groups[label]])] if looks else []
    told = [label for label, models in groups.items() if _pairs(models) and label not in looks]
    told.sort(key=lambda label: not any(higher(exact, float32) for _, float32, exact in _pairs(groups[label])))
    sentences += [_sentence(label, groups[label]) for label in told]
    compared = _against_plain([model for models in groups.values() for model in models])
    sentences += [compared] if compared else []
    robust = {label: found for label in report.attacks if (found := _robust(groups, label))}
    sentences += [_within(report, label, found) for label, found in robust.items()]
    means = {attack: _means(groups, attack) for attack in sizes.labels(report)}
    sentences += _about_sizes(report, {attack: found for attack, found in means.items() if found})
    counted = {label for found in (*means.values(), *robust.values()) for label in found}
    sentences += _untold({label: groups[label] for label in groups if label not in {*looks, *told, *counted}})
    return not_learned(report) + sentences


def _untold(groups: Mapping[str, Sequence[Model]]) -> list[str]:
    """Networks of which nothing has been said: those of which the same is to say together."""
    labels: dict[str, list[str]] = {}
    for label, models in groups.items():
        labels.setdefault(_without_pairs(models), []).append(label)
    return [
        f"{begun(joined(names)) if len(names) <= FEW else f'{len(names)} networks'}: {said}."
        for said, names in labels.items()
    ]


def _pairs(models: Sequence[Model]) -> list[tuple[str, Share, Share]]:
    """Label, float32 success and exact success of every attack that was made in both arithmetics."""
    return [
        (attack.label, attack.found["float32"].success, attack.found["exact"].success)
        for model in models
        for attack in model.attacks
        if all(name in attack.found and attack.found[name].success.total for name in BOTH)
    ]


def _only_looks_robust(pairs: Sequence[tuple[str, Share, Share]]) -> bool:
    """Every attack is clearly stronger when exact; in float32 most images are not fooled, exactly most are."""
    return bool(pairs) and all(
        higher(exact, float32) and float32.value < 0.5 <= exact.value for _, float32, exact in pairs
    )


def _looks_robust(labels: Sequence[str], models: Sequence[Model]) -> str:
    one = len(labels) == 1
    return (
        f"{begun(joined(labels))} only look{'s' if one else ''} robust: {_fooled(_pairs(models))}. "
        f"{'Its' if one else 'Their'} robustness is an artefact of float32."
    )


def _sentence(label: str, models: Sequence[Model]) -> str:
    pairs = _pairs(models)
    worse = sum(higher(exact, float32) for _, float32, exact in pairs)
    label, numbers = begun(label), _fooled(pairs)
    if worse:
        part = "" if worse == len(pairs) else f" in {number(worse)} of {number(len(pairs))} comparisons"
        return f"{label} is weaker than float32 shows{part}: {numbers}."
    if any(higher(float32, exact) for _, float32, exact in pairs):
        return f"{label}: {numbers}, where at least one attack is weaker than in float32."
    return f"{label}: no measurable difference between float32 and exact arithmetic: {numbers}."


def _without_pairs(models: Sequence[Model]) -> str:
    found = [one for model in models for attack in model.attacks for one in attack.found.values()]
    single = [one.success for one in found if one.success.total]
    if single:
        return f"{spread(single)} of the test images were fooled"
    if found:
        return "no test image was classified correctly before the attack"
    if any(model.attacks for model in models):
        return "no attack is finished yet"
    units = [one for model in models for one in model.results_of(Units)]
    if units:
        strongest, weakest = ([one.needed(kind) for one in units] for kind in ("strongest", "weakest"))
        total = units[0].profile.shape[1]
        return (
            f"removing the {_about(strongest)} strongest of {total} units halves a class's accuracy; it takes "
            f"{_about(weakest)} if the weakest are removed first"
        )
    accuracy = pooled([model.measured.accuracy for model in models if model.measured])
    return f"test accuracy {with_interval(accuracy)}" if accuracy else "not done yet"


def _about(counts: Sequence[float]) -> str:
    """'4' or '3 to 6' of means."""
    low, high = round(min(counts)), round(max(counts))
    return f"{low}" if low == high else f"{low} to {high}"


def _against_plain(models: Sequence[Model]) -> str:
    """Whether models that are defended are harder to fool, computed exactly, than those that are not."""
    undefended = [model for model in models if model.temperature == 1 and model.teacher is None]
    defended = [model for model in models if model.temperature != 1 or model.teacher is not None]
    plain_labels = list(dict.fromkeys(model.label for model in undefended))
    if len(plain_labels) != 1 or not defended:
        return ""
    compared, harder = set(), set()
    for model in defended:
        for other in undefended:
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


# Attacks within a budget --------------------------------------------------------------------------------------------


def _robust(groups: Mapping[str, Sequence[Model]], attack: str) -> dict[str, Share]:
    """By model label, the robust accuracy under an attack within a budget, all seeds; empty if it has no budget."""
    found = {
        label: pooled([one.found[name].robust for one, name in sizes.of(models, attack) if one.bounded])
        for label, models in groups.items()
    }
    return {label: share for label, share in found.items() if share}


def _within(report: Report, attack: str, found: Mapping[str, Share]) -> str:
    """The robust accuracy of each network, or of the two that lie farthest apart."""
    bound = next(a.bound for model in report.models for a in model.attacks if a.label == attack and a.bound)
    said = f"Under {attack} ({sizes.limit(bound)})"
    if len(found) == 1:
        ((label, share),) = found.items()
        return f"{said} {with_interval(share)} of {share.total} test images are still classified correctly by {label}."
    if len(found) <= FEW:
        each = joined([f"{with_interval(share)} for {one}" for one, share in found.items()])
        return f"{said} the robust accuracy is {each}."
    low, high = (choose(found, key=lambda label: found[label].value) for choose in (min, max))
    lowest, highest = (f"{with_interval(found[label])} for {label}" for label in (low, high))
    return f"{said} the robust accuracy lies between {lowest} and {highest}."


# Smallest perturbations ---------------------------------------------------------------------------------------------


def _means(groups: Mapping[str, Sequence[Model]], attack: str) -> dict[str, Mean]:
    """By model label, the mean smallest perturbation over all seeds; without those of which no image was fooled."""
    found = {label: sizes.together(sizes.of(models, attack)) for label, models in groups.items()}
    return {label: mean for label, mean in found.items() if mean.rows}


def _about_sizes(report: Report, means: Mapping[str, Mapping[str, Mean]]) -> list[str]:
    attacks = {attack.label: attack for model in report.models for attack in model.attacks}
    straight = {label: found for label, found in means.items() if not attacks[label].over_temperature} or means
    compared = _larger_than_plain(plain(report), straight)
    said = [_smallest(attacks[label], found, _withstood(report, label)) for label, found in straight.items()]
    for label, found in means.items():
        for other in straight:
            if label not in straight and attacks[other].function == attacks[label].function:
                said += _scaled(other, means[other], found)
    return ([compared] if compared else []) + said


def _scaled(attack: str, straight: Mapping[str, Mean], over: Mapping[str, Mean]) -> list[str]:
    """Networks that the same attack breaks with smaller perturbations when their logits are divided by T."""
    weaker = [label for label in over if label in straight and apart(straight[label], over[label]) == 1]
    if not weaker:
        return []
    one = max(weaker, key=lambda label: straight[label].value - over[label].value)
    look = "looks" if len(weaker) == 1 else "look"
    names = begun(_named(weaker, len(over)))
    return [
        f"{names} only {look} as robust as {attack} shows: on the logits over T it finds smaller perturbations, "
        f"{with_interval(over[one])} instead of "
        f"{with_interval(straight[one])}{f' for {one}' if len(weaker) > 1 else ''}."
    ]


def _larger_than_plain(base: str | None, means: Mapping[str, Mapping[str, Mean]]) -> str:
    """Which networks need larger perturbations than the plain one, as far as their intervals lie apart."""
    compared: dict[str, list[int]] = {}
    for found in means.values():
        plain_mean = found.get(base) if base else None
        for label, mean in found.items():
            if plain_mean is not None and label != base:
                compared.setdefault(label, []).append(apart(mean, plain_mean))
    if not compared:
        return ""
    tried = max(map(len, compared.values()))
    by_every = "" if tried == 1 else f", by {'both' if tried == 2 else f'each of {number(tried)}'} attacks"
    more = [label for label, signs in compared.items() if min(signs) == 1]
    less = [label for label, signs in compared.items() if max(signs) == -1]
    rest = len(compared) - len(more) - len(less)
    if not more and not less:
        alike = "differs" if tried == 1 else "differs under every attack"
        return f"No network {alike} from {base} in how large a perturbation fools it, as far as these images can show."
    parts = [
        f"{_named(labels, len(compared))} {'needs' if len(labels) == 1 else 'need'} {words} perturbations than {base}"
        for labels, words in ((more, "larger"), (less, "smaller"))
        if labels
    ]
    unlike = f"; for the other {number(rest)} that cannot be said" if rest else ""
    return f"{begun(' and '.join(parts))} to be fooled{by_every}{unlike}."


def _named(labels: Sequence[str], of: int) -> str:
    if len(labels) <= FEW:
        return joined(labels)
    if len(labels) == of:
        return f"all {number(of)} other networks"
    return f"{number(len(labels))} of the {number(of)} other networks"


def _smallest(attack: Attack, means: Mapping[str, Mean], withstood: int) -> str:
    """The mean of each network, or of the two that lie farthest apart."""
    assert attack.minimises is not None
    said = f"In {NORMS[attack.minimises]}, the smallest perturbations that {attack.label} finds are on average"
    if len(means) <= FEW:
        said = f"{said} {joined([f'{with_interval(mean)} for {label}' for label, mean in means.items()])}"
    else:
        low, high = (choose(means, key=lambda label: means[label].value) for choose in (min, max))
        said = f"{said} between {with_interval(means[low])} for {low} and {with_interval(means[high])} for {high}"
    return f"{said}, without {withstood} images that were not fooled." if withstood else f"{said}."


def _withstood(report: Report, attack: str) -> int:
    return sum(one.robustness[name].failures for one, name in sizes.of(report.models, attack))


# Words --------------------------------------------------------------------------------------------------------------


def number(count: int) -> str:
    """'three' for 3; digits above twelve."""
    return _WORDS[count] if count < len(_WORDS) else str(count)


def _attacks(pairs: Sequence[tuple[str, Share, Share]]) -> str:
    labels = list(dict.fromkeys(label for label, _, _ in pairs))
    return labels[0] if len(labels) == 1 else f"the {number(len(labels))} attacks"


def _fooled(pairs: Sequence[tuple[str, Share, Share]]) -> str:
    """'the two attacks fool 0 to 9 % of its test images in float32 and 91 to 100 % in exact arithmetic'."""
    single = len({label for label, _, _ in pairs}) == 1
    float32, exact = spread([one for _, one, _ in pairs]), spread([one for _, _, one in pairs])
    return (
        f"{_attacks(pairs)} fool{'s' if single else ''} {float32} of the test images in float32 and {exact} in exact "
        "arithmetic"
    )
