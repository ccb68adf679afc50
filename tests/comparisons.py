"""A table and a short run for the tests of `compare`, and a reader of its page."""

import datetime
import math
from functools import cache
from html.parser import HTMLParser
from unittest.mock import patch

import numpy as np
import pyarrow as pa

from fastbalance import compare_runs
from fastbalance.compare_report import page
from fastbalance.comparison import compare


def mixed_table():
    """1,000 flights, 10 % late: columns of every kind, and some that are of no use or give the label away."""
    generator = np.random.default_rng(0)
    n = 1000
    late = generator.random(n) < 0.1
    distance = np.where(generator.random(n) < 0.1, math.nan, generator.normal(size=n) + late)
    days = [None if k % 9 == 0 else datetime.date(2024, 1, 1) + datetime.timedelta(days=k % 300) for k in range(n)]
    return pa.table({
        "number": pa.array(distance, from_pandas=True),
        "airport": [None if k % 7 == 0 else f"airport {k % 40}" for k in generator.permutation(n)],
        "day": days,
        "weekend": generator.random(n) < 0.3,
        "id": generator.permutation(n),
        "code": [f"row {k}" for k in range(n)],
        "same": ["x"] * n,
        "told": np.where(late, "yes", "no").tolist(),
        "arrival": pa.array(np.where(late, math.nan, generator.normal(size=n)), from_pandas=True),
        "blob": [b"x"] * n,
        "late": late,
    })  # fmt: skip


def run_shortly(data, label, **options):
    """Results after few steps. The budget is such that a slow machine finishes all seeds, too."""
    with patch.multiple(compare_runs, _MOST_STEPS=60, _MOST_PASSES=5):
        return compare(data, label, budget="10m", n_seeds=3, n_jobs=1, **options)


@cache
def short_run():
    """Results on 1,500 rows of two classes, with characters that HTML has a meaning for."""
    generator = np.random.default_rng(0)
    y = generator.random(1500) < 0.15
    x = generator.normal(size=(1500, 3)) + y[:, None]
    names = np.where(generator.random(1500) < 0.5, "<b>", "a & b").tolist()
    return run_shortly({"x": x, "name": names, "y": np.where(y, "yes", "<no> & no").tolist()}, "y")


@cache
def short_page():
    return page(short_run())


class Page(HTMLParser):
    """What a page holds: elements left open, links, how many of each element."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.counts = [], [], {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in ("meta", "br", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
