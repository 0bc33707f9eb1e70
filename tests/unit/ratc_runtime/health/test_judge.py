"""The verdict on reports: which nodes are excluded, and which are not."""

from __future__ import annotations

import pytest
from ratc_runtime.config.sections import Health
from ratc_runtime.health.judge import against_good, judge, judge_links, pairs
from ratc_runtime.health.report import Device, NetworkReport, NodeReport

NAMES = ("a", "b", "c", "d")
NOTHING = Health(matrix_tflops=None, memory_gb_s=None, network_gb_s=None, max_excluded_nodes=2)
SHEET = NOTHING.replace(matrix_tflops=1000.0, memory_gb_s=3000.0)


def reports(*rates: float | tuple[float, ...], memory: float = 2000) -> dict[int, NodeReport]:
    """A report by rank, with the rates of a matrix product on the node's cards."""
    return {
        rank: NodeReport(
            host=NAMES[rank],
            devices=[
                Device(index=index, matrix_tflops=rate, memory_gb_s=memory)
                for index, rate in enumerate(of if isinstance(of, tuple) else (of,))
            ],
        )
        for rank, of in enumerate(rates)
    }


def test_a_slow_card_excludes_its_node_and_is_named() -> None:
    verdict = judge(reports((700, 690), (710, 300), (705, 700)), 3, SHEET, "cuda", NAMES)
    assert verdict.bad == {1: ["card 1 matrix product: 300 TFLOPS, the median of all is 700"]}
    assert verdict.excluded == [1]
    assert not verdict.warnings


@pytest.mark.parametrize(("rates", "bad"), [((700, 500), [1]), ((700, 530), []), ((400, 700), [0])])
def test_of_two_nodes_the_faster_is_the_reference(rates: tuple[float, ...], bad: list[int]) -> None:
    assert judge(reports(*rates), 2, SHEET, "cuda", NAMES).excluded == bad


def test_if_all_nodes_are_slow_none_is_excluded_with_a_warning() -> None:
    verdict = judge(reports(300, 310, 290), 3, SHEET, "cuda", NAMES)
    assert verdict.passed
    (warning,) = verdict.warnings
    assert warning.startswith(
        "matrix product: the median of 3 is 300 TFLOPS, 30% of the 1e+03 of the card's data sheet"
    )
    assert judge(reports(300, 310, 290), 3, NOTHING, "cuda", NAMES).warnings == []


def test_a_single_node_is_compared_with_the_data_sheet_and_among_its_cards() -> None:
    alone = judge(reports(300), 1, SHEET, "cuda", NAMES)
    assert alone.passed
    assert len(alone.warnings) == 1
    assert judge(reports((700, 300, 705)), 1, SHEET, "cuda", NAMES).excluded == [0]


def test_cpus_have_a_wider_tolerance_than_cards() -> None:
    assert judge(reports(1.0, 0.4, 1.1), 3, NOTHING, "cpu", NAMES).passed
    assert judge(reports(1.0, 0.2, 1.1), 3, NOTHING, "cpu", NAMES).bad == {
        1: ["matrix product: 0.2 TFLOPS, the median of all is 1"]
    }


def test_a_device_problem_excludes_its_node_and_a_doubt_does_not() -> None:
    found = reports(700, 700)
    sick = Device(index=3, problems=["remapping a damaged row of its memory has failed"])
    warm = Device(index=0, doubts=["the driver slows it down for heat, at 88 °C"])
    found[0] = found[0].replace(devices=[*found[0].devices, warm])
    found[1] = found[1].replace(devices=[*found[1].devices, sick], problems=["a test hangs: card 2: memory"])
    verdict = judge(found, 2, SHEET, "cuda", NAMES)
    assert verdict.bad == {
        1: ["a test hangs: card 2: memory", "card 3 remapping a damaged row of its memory has failed"]
    }
    assert verdict.warnings == ["a card 0: the driver slows it down for heat, at 88 °C"]


def test_a_node_without_a_report_is_named_as_missing() -> None:
    found = reports(700, 700, 700)
    del found[2]
    verdict = judge(found, 3, SHEET, "cuda", NAMES)
    assert (verdict.silent, verdict.excluded, verdict.passed) == ([2], [2], False)


def test_slow_links_between_cards_are_named_with_their_node() -> None:
    rates = {0: 300.0, 1: 40.0, 2: 310.0}
    found = {rank: NetworkReport(link_gb_s=rate) for rank, rate in rates.items()}
    assert judge_links(found) == {1: ["an all-reduce among its cards: 40 GB/s, the median of the nodes is 300"]}
    assert judge_links({0: NetworkReport(network_gb_s=1.0)}) == {}


def test_nodes_are_tested_in_pairs_and_against_good_ones() -> None:
    assert pairs([0, 1, 2, 3, 4]) == [(0, 1), (2, 3)]
    assert against_good([1, 4], [0, 2, 3]) == [(1, 0), (4, 2)]
