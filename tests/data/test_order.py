"""The order of windows is a function of the seed and the step: no table, process or history changes it."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from cocomix.data import batch_order
from cocomix.data import sampler as order
from cocomix.data.sampler import permuted


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 1000, 4097])
def test_permuted_is_a_permutation_of_its_own_for_each_seed_and_epoch(n: int) -> None:
    every = [permuted(np.arange(n), n, seed, epoch) for seed in range(3) for epoch in range(3)]
    for one in every:
        assert np.array_equal(np.sort(one), np.arange(n))
    if n > 10:
        assert len({one.tobytes() for one in every}) == 9
        one_by_one = [int(permuted(np.array([place]), n, 0, 0)[0]) for place in range(0, n, 7)]
        assert one_by_one == every[0][::7].tolist()


def test_permuted_looks_random() -> None:
    """First places over many seeds are even (chi-squared); neighbours and order say nothing about the place."""
    n, seeds = 50, 4000
    firsts = np.array([permuted(np.arange(2), n, seed, 0) for seed in range(seeds)])
    for place in (0, 1):
        counts = np.bincount(firsts[:, place], minlength=n)
        chi = ((counts - seeds / n) ** 2 / (seeds / n)).sum()
        assert 20 < chi < 90, chi  # 49 degrees of freedom: mean 49, standard deviation 10
    big = 3 * order.TABLE
    there = permuted(np.arange(100_000), big, 5, 1).astype(float) / big
    assert abs(there.mean() - 0.5) < 0.005 and abs(there.std() - 12**-0.5) < 0.005
    assert abs(np.corrcoef(there[:-1], there[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(there, np.arange(len(there)))[0, 1]) < 0.02


def test_above_the_table_batches_are_the_same_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "TABLE", 5)
    n, size = 10, 4
    stream = np.concatenate([batch_order(n, size, seed=3, step=step) for step in range(10)])
    for epoch in range(4):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert np.array_equal(batch_order(n, size, 3, 7), stream[28:32])
    huge = batch_order(10**12, 1000, 1, 10**6)
    assert huge.dtype == np.int64 and len(np.unique(huge)) == 1000 and huge.min() >= 0 and huge.max() < 10**12


PROGRAM = """
import hashlib
from cocomix.data.sampler import batch_order
digest = hashlib.sha256()
for n, step in ((1000, 3), (2**24 + 5, 7), (999, 100)):
    digest.update(batch_order(n, 64, 11, step).tobytes())
print(digest.hexdigest())
"""


def test_it_depends_on_the_seed_only_not_on_processes() -> None:
    digest = hashlib.sha256()
    for n, step in ((1000, 3), (2**24 + 5, 7), (999, 100)):
        digest.update(batch_order(n, 64, 11, step).tobytes())
    environment = os.environ | {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "PYTHONHASHSEED": "5"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest.hexdigest()


def test_orders_of_finished_runs_stay_as_they_are() -> None:
    """As version 0.1 gave them: a change here would change what finished runs say they were trained on."""
    assert batch_order(8, 8, 0, 0).tolist() == [3, 6, 4, 0, 7, 5, 2, 1]
    assert batch_order(11_000, 6, 3, 2000).tolist() == [9916, 309, 9114, 6576, 1570, 4802]
