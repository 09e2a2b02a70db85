from mlfilter_core.tallies.tally import Tally, merged


def test_the_first_three_examples_of_each_reason_are_kept() -> None:
    tally = Tally()
    for i in range(1200):
        tally.add("null", f"x:{i}")
    tally.add("not_a_label", "y:7")
    assert tally.total == 1201
    assert tally.to_json() == {
        "null": {"count": 1200, "examples": ["x:0", "x:1", "x:2"]},
        "not_a_label": {"count": 1, "examples": ["y:7"]},
    }
    assert str(tally) == "1,200 null (x:0, x:1, x:2, ...); 1 not_a_label (y:7)"


def test_a_sum_leaves_its_parts_as_they_are() -> None:
    first, second = Tally(), Tally()
    first.add("null", "a")
    for example in "bcd":
        second.add("null", example)
    assert str(merged([first, second])) == "4 null (a, b, c, ...)"
    assert (str(first), str(second)) == ("1 null (a)", "3 null (b, c, d)")
