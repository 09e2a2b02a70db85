import numpy as np

from mlfilter_core.training.splits import fold_numbers, is_held_out

HASHES = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64)


def test_a_split_is_the_same_on_every_machine() -> None:
    few = np.array([0, 1, 2, 3, 2**64 - 1], np.uint64)
    # SplitMix64 with the seed 0 gives 0xE220A8397B1DCDAF first, which is 0.883 of 2^64.
    assert is_held_out(few[:1], 0.883, 0).tolist() == [False]
    assert is_held_out(few[:1], 0.8834, 0).tolist() == [True]
    assert fold_numbers(few, 5, 0.1, 0).tolist() == fold_numbers(few[::-1], 5, 0.1, 0)[::-1].tolist()


def test_equal_texts_fall_into_the_same_part() -> None:
    twice = np.concatenate([HASHES, HASHES])
    for parts in (is_held_out(twice, 0.2, 1), fold_numbers(twice, 5, 0.1, 1)):
        assert (parts[: len(HASHES)] == parts[len(HASHES) :]).all()


def test_parts_have_the_requested_sizes() -> None:
    assert abs(is_held_out(HASHES, 0.2, 0).mean() - 0.2) < 0.01
    assert np.bincount(fold_numbers(HASHES, 5, 0.1, 0)).tolist() == [len(HASHES) // 5] * 5
    assert np.bincount(fold_numbers(HASHES[:7], 3, 0.1, 0)).tolist() == [3, 2, 2]
    for n, fraction, n_left_out in ((len(HASHES), 0.1, len(HASHES) // 10), (3, 0.1, 1), (4, 0.9, 3)):
        folds = fold_numbers(HASHES[:n], 1, fraction, 0)
        assert sorted(folds.tolist()) == [-1] * (n - n_left_out) + [0] * n_left_out


def test_splits_are_independent() -> None:
    held_out = is_held_out(HASHES, 0.2, 0)
    folds = fold_numbers(HASHES, 5, 0.1, 0)
    assert np.abs(np.bincount(folds[held_out]) / held_out.sum() - 0.2).max() < 0.03
    other = is_held_out(HASHES, 0.2, 1)
    assert abs((held_out & other).mean() - 0.04) < 0.01
