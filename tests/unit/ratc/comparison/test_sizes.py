"""The table of the rows of elastic plans."""

from ratc.comparison import sizes
from ratc.plan import Value


def plan(**rows: tuple[int, int | None]) -> dict[str, Value]:
    """Values of rows `n2`, `n4` …: the processes, and the bytes of a process if they are known."""
    told = {}
    for name, (world, peak) in rows.items():
        told[f"elastic.{name[1:]}.world_size"] = Value(world, "derived")
        told[f"elastic.{name[1:]}.peak_reserved_bytes"] = Value(peak, "predicted")
    return told


def test_rows_of_both_sides_are_put_beside_each_other_in_the_order_of_nodes():
    old, new = plan(n2=(2, 1 << 30), n10=(10, 1 << 30)), plan(n2=(2, 2 << 30), n4=(4, 1 << 30))
    assert sizes.columns(old, new) == ("processes", "PyTorch's peak")
    assert list(sizes.lines(sizes.rows(old, new))) == [
        ("2", "2", "1.0 GiB → 2.0 GiB"),
        ("4 (added)", "4", "1.0 GiB"),
        ("10 (removed)", "10", "1.0 GiB"),
    ]


def test_a_column_that_no_side_knows_is_left_out():
    assert sizes.columns(plan(n2=(2, None)), {}) == ("processes",)
    assert list(sizes.lines(sizes.rows(plan(n2=(2, None)), plan(n2=(2, 1 << 30))))) == [
        ("2", "2", "not known → 1.0 GiB")
    ]


def test_fixed_plans_have_no_rows():
    assert sizes.rows({"parallel.world_size": Value(2, "derived")}, {}) == ()
