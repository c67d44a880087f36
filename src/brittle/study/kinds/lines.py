"""Who learns from whom: the models of a study as lines that are compared over temperatures and generations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from brittle.measures import Share
from brittle.study.store.results import Model, Report, remembered

if TYPE_CHECKING:
    from brittle.study.kinds.attack.result import Attack

MODELS = 4  # side by side on a page
ROWS = 12  # of the first tables: where there are more models, seeds are taken together


@dataclass(frozen=True)
class Line:
    """Models that a figure joins: a generation of the chains, or networks of one name that stand outside of them."""

    name: str
    generation: int | None  # None: they learn from no network, and none learns from them, such as a control
    models: tuple[Model, ...]

    @property
    def temperatures(self) -> list[float]:
        """Those that its models were trained at, sorted."""
        return sorted({model.temperature for model in self.models})


@remembered
def lines(report: Report) -> list[Line]:
    """The generations in order, the first being the teachers, then what stands outside of the chains by its name.

    A generation of which all models share a name is called by it, else 'generation 3'; where two names compete for the
    same temperature and seed they are lines of their own.
    """
    teachers = {model.teacher for model in report.models}
    chained = [model for model in report.models if model.teacher is not None or model.name in teachers]
    found = []
    for generation in sorted({model.generation for model in chained}):
        models = [model for model in chained if model.generation == generation]
        names = list(dict.fromkeys(model.name for model in models))
        places = {(model.name, model.temperature, model.seed) for model in models}
        if len({place[1:] for place in places}) < len(places):
            found += [Line(name, generation, _called(models, name)) for name in names]
        else:
            found.append(Line(names[0] if len(names) == 1 else f"generation {generation}", generation, tuple(models)))
    outside = [model for model in report.models if model not in chained]
    return found + [Line(name, None, _called(outside, name)) for name in dict.fromkeys(model.name for model in outside)]


def _called(models: Sequence[Model], name: str) -> tuple[Model, ...]:
    return tuple(model for model in models if model.name == name)


def chains(report: Report) -> list[Line]:
    """The generations alone; none if there are fewer than two."""
    found = [line for line in lines(report) if line.generation is not None]
    return found if len({line.generation for line in found}) > 1 else []


def swept(report: Report) -> bool:
    """Whether some line has at least two temperatures, so that something can be drawn against them."""
    return any(len(line.temperatures) > 1 for line in lines(report))


def plain(report: Report) -> str | None:
    """Label of the undefended network: without temperature and teacher; None if there is none, or no one alone.

    Of several, the one that teaches the others is meant, and not a control. A network that has not learned is none.
    """
    found = [m for m in report.models if m.temperature == 1 and m.teacher is None and m.learned is not False]
    teachers = {model.teacher for model in report.models}
    for models in (found, [model for model in found if model.name in teachers]):
        labels = {model.label for model in models}
        if len(labels) == 1:
            return labels.pop()
    return None


# Rows of the first tables -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """One model, or all seeds of one."""

    title: str
    models: tuple[Model, ...]

    @property
    def accuracy(self) -> Share | None:
        """Over the test images of all seeds; None if no seed is measured."""
        return pooled([model.measured.accuracy for model in self.models if model.measured])

    @property
    def saturated(self) -> Share | None:
        """Over the test images of all seeds; None if no seed is measured."""
        return pooled([model.measured.saturated for model in self.models if model.measured])

    def attacks(self, label: str) -> list[Attack]:
        """One a seed; without those of which nothing is done."""
        return [attack for model in self.models for attack in model.attacks if attack.label == label and attack.found]

    def success(self, label: str, arithmetic: str) -> Share | None:
        """Of the attacks of all seeds that have this arithmetic; None if there is none."""
        return pooled([a.found[arithmetic].success for a in self.attacks(label) if arithmetic in a.found])

    def robust(self, label: str, arithmetic: str) -> Share | None:
        """Robust accuracy of all seeds under an attack with a budget; None if there is none."""
        found = [a.found[arithmetic].robust for a in self.attacks(label) if a.bounded and arithmetic in a.found]
        return pooled(found)

    def rows(self, label: str) -> int:
        """How many rows are done so far, of all seeds; 0 if the attack is complete."""
        attacks = self.attacks(label)
        whole = len(attacks) == len(self.models) and all(attack.complete for attack in attacks)
        return 0 if whole else sum(len(attack.rows) for attack in attacks)


def groups(report: Report) -> list[Group]:
    """Each model by itself, or the seeds of each together where that would be more than a table's rows."""
    if len(report.models) <= ROWS or len(report.seeds) < 2:
        return [Group(model.title, (model,)) for model in report.models]
    labels = dict.fromkeys(model.label for model in report.models)
    return [Group(label, tuple(model for model in report.models if model.label == label)) for label in labels]


def pooled(shares: Sequence[Share]) -> Share | None:
    """All rows together; None of no shares."""
    return Share(sum(one.count for one in shares), sum(one.total for one in shares)) if shares else None


# Models that are shown ----------------------------------------------------------------------------------------------


def shown_models(report: Report) -> list[Model]:
    """The first models of the first seed; of more, in chains, the plain one and the hottest of some generations."""
    if not report.models:
        return []
    models = [model for model in report.models if model.seed == report.models[0].seed]
    generations = chains(report)
    if len(models) <= MODELS or not generations:
        return models[:MODELS]
    hottest = [
        max((model for model in line.models if model in models), key=lambda model: model.temperature)
        for line in (*generations[: MODELS - 2], generations[-1])
        if any(model in models for model in line.models)
    ]
    return [model for model in models if model.label == plain(report) or model in hottest][:MODELS]
