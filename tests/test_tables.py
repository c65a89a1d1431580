"""Statistics against values by hand, and what the tables look like."""

from __future__ import annotations

import csv
import math
import statistics

import pytest

from mrcnn_tf.tables import markdown, save_csv, summarise, t_quantile


class TestStatistics:
    def test_by_hand(self):
        # 1, 2, 3: variance ((-1)^2 + 0 + 1^2) / 2 = 1; t of two degrees of freedom 4.30265, over the root of 3.
        summary = summarise([1.0, 2.0, 3.0])
        assert (summary.count, summary.mean, summary.spread) == (3, 2.0, 1.0)
        assert summary.half_width == pytest.approx(2.48414, abs=1e-5)

    def test_against_the_standard_library(self):
        values = [0.412, 0.398, 0.405, 0.421]
        assert summarise(values).spread == pytest.approx(statistics.stdev(values))

    def test_one_and_none(self):
        one, none = summarise([0.4]), summarise([])
        assert one.mean == 0.4 and math.isnan(one.spread) and math.isnan(one.half_width)
        assert none.count == 0 and math.isnan(none.mean)

    @pytest.mark.parametrize(
        ("degrees", "value"),
        [(1, 12.7062), (2, 4.30265), (4, 2.77645), (9, 2.26216), (30, 2.04227), (31, 2.03951), (60, 2.00030)],
    )
    def test_quantiles(self, degrees, value):
        assert t_quantile(degrees) == pytest.approx(value, abs=2e-5)

    def test_quantiles_fall_towards_the_normal_ones(self):
        values = [t_quantile(n) for n in range(1, 200)]
        assert values == sorted(values, reverse=True) and values[-1] > 1.959964
        assert t_quantile(10**6) == pytest.approx(statistics.NormalDist().inv_cdf(0.975), abs=1e-5)


def test_markdown():
    text = "| a | b |\n| --- | ---: |\n| x | 1 |"
    assert markdown(["a", "b"], [["x", "1"]]) == text


def test_csv(tmp_path):
    save_csv(tmp_path / "t.csv", [{"name": "a, b", "x": 0.1}, {"name": "c", "x": math.nan}])
    with (tmp_path / "t.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"name": "a, b", "x": "0.1"}, {"name": "c", "x": ""}]
