import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalebrain.errors import StatisticsError
from scalebrain.predict.splits import grouped_folds, leave_one_group_out

groups_of = st.lists(st.integers(0, 8), min_size=2, max_size=60).map(np.array)


@given(groups_of)
def test_leave_one_group_out__holds_out_each_group_once(groups):
    if len(np.unique(groups)) < 2:
        with pytest.raises(StatisticsError, match="two or more groups"):
            list(leave_one_group_out(groups))
        return
    held_out = []
    for group, train, test in leave_one_group_out(groups):
        assert set(groups[test]) == {group}
        assert group not in groups[train]
        assert len(train) + len(test) == len(groups)
        held_out += test.tolist()
    assert sorted(held_out) == list(range(len(groups)))


@given(groups_of, st.integers(2, 5), st.integers(0, 3))
def test_grouped_folds__never_split_a_group(groups, n_folds, seed):
    folds = grouped_folds(groups, n_folds, seed=seed)
    n_groups = len(np.unique(groups))
    assert len(folds) == (0 if n_groups < 2 else min(n_folds, n_groups))
    for train, test in folds:
        assert len(train)
        assert len(test)
        assert not set(groups[train]) & set(groups[test])
    if folds:
        assert sorted(np.concatenate([test for _, test in folds])) == list(range(len(groups)))


def test_grouped_folds__are_balanced_and_seeded():
    groups = np.repeat(np.arange(6), [30, 10, 10, 10, 10, 10])
    sizes = [len(test) for _, test in grouped_folds(groups, 3)]
    assert sorted(sizes) == [20, 30, 30]
    first = [test.tolist() for _, test in grouped_folds(groups, 3, seed=1)]
    assert first == [test.tolist() for _, test in grouped_folds(groups, 3, seed=1)]
    assert any(
        first != [test.tolist() for _, test in grouped_folds(groups, 3, seed=seed)]
        for seed in range(2, 8)
    )
    with pytest.raises(StatisticsError, match="two or more folds"):
        grouped_folds(groups, 1)
