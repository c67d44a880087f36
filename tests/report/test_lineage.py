"""Who is compared with whom."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made import chain, network, report, sized

from brittle.measures import Share
from brittle.study.kinds import lines as lineage
from brittle.study.store.results import Model, Report, remembered


def nothing(*_: object) -> list:
    return []


def names(models: list[Model]) -> list[tuple[str, int | None, int]]:
    return [(line.name, line.generation, len(line.models)) for line in lineage.lines(report(*models))]


def test_generations_are_lines_and_a_control_is_one_of_its_own():
    models = [*chain(nothing, seeds=(0, 1)), network("control", 1), network("control", 1, seed=1)]
    assert names(models) == [("teacher", 0, 8), ("assistant", 1, 8), ("student", 2, 8), ("control", None, 2)]
    assert [line.name for line in lineage.chains(report(*models))] == ["teacher", "assistant", "student"]


def test_a_generation_of_several_names_has_a_number():
    """As in a study whose hotter networks need another learning rate, and so another name."""
    models = [
        network("hard", 1),
        network("hard_40", 40),
        network("soft", 1, teacher="hard", generation=1),
        network("soft_40", 40, teacher="hard_40", generation=1),
    ]
    assert names(models) == [("generation 0", 0, 2), ("generation 1", 1, 2)]


def test_names_that_compete_for_a_temperature_are_not_mixed():
    models = [
        network("teacher", 1),
        network("one", 1, teacher="teacher", generation=1),
        network("other", 1, teacher="teacher", generation=1),
    ]
    assert names(models) == [("teacher", 0, 1), ("one", 1, 1), ("other", 1, 1)]


def test_networks_that_no_one_teaches_are_no_chains_but_may_be_a_sweep():
    hot = report(network("hard", 1), network("hard", 20))
    assert lineage.chains(hot) == []
    assert lineage.swept(hot)
    assert not lineage.swept(report(network("standard", 1), network("tempered", 20)))


def test_the_plain_network_is_the_teacher_and_not_the_control():
    models = [network("control", 1), *chain(nothing)]
    assert lineage.plain(report(*models)) == "teacher T=1"
    assert lineage.plain(report(network("one", 1), network("other", 1))) is None
    assert lineage.plain(report(network("hot", 20))) is None


def test_seeds_are_taken_together_where_rows_would_be_many():
    few = report(*chain(nothing, temperatures=(1.0, 20.0), seeds=(0, 1)))
    assert [group.title for group in lineage.groups(few)][:2] == ["teacher T=1, seed 0", "teacher T=20, seed 0"]
    many = report(*chain(nothing, seeds=(0, 1, 2)))
    groups = lineage.groups(many)
    assert [group.title for group in groups][:2] == ["teacher T=1", "teacher T=5"]
    assert len(groups) == 12
    assert groups[0].accuracy == Share(3 * 990, 3 * 1000)


def test_a_group_adds_its_seeds_up_and_counts_what_is_not_done():
    def attacks(_generation: int, _t: float, seed: int) -> list:
        one = sized("l2", [0, 1, 2] if seed else [1, 2, float("inf")])
        return [one if seed != 2 else replace(one, complete=False)]

    group = lineage.groups(report(*chain(attacks, seeds=(0, 1, 2))))[0]
    assert group.success("l2", "result") == Share(2 + 2 + 2, 3 + 2 + 2)
    assert group.success("l2", "exact") is None
    assert group.rows("l2") == 9
    assert lineage.groups(report(*chain(attacks, seeds=(0, 1))))[0].rows("l2") == 0


def test_what_is_remembered_is_computed_once_for_each_report():
    made: list[Report] = []

    @remembered
    def costly(found: Report) -> int:
        made.append(found)
        return len(made)

    one = report(network("one", 1))
    assert [costly(one), costly(one)] == [1, 1]
    assert costly(replace(one, title="another")) == 2


@pytest.mark.parametrize("shares", [[], [Share(1, 2), Share(3, 4)]])
def test_shares_are_pooled_by_their_rows(shares: list[Share]):
    assert lineage.pooled(shares) == (Share(4, 6) if shares else None)
