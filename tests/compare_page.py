"""A short run of `compare` for the tests of what it returns and shows, and a reader of pages."""

from functools import cache
from html.parser import HTMLParser

import numpy as np

from fastbalance.comparison import compare


@cache
def short_run():
    """Results on 1,500 rows of two classes, with characters that HTML has a meaning for."""
    generator = np.random.default_rng(0)
    y = generator.random(1500) < 0.15
    x = generator.normal(size=(1500, 3)) + y[:, None]
    names = np.where(generator.random(1500) < 0.5, "<b>", "a & b").tolist()
    return compare({"x": x, "name": names, "y": np.where(y, "yes", "<no> & no").tolist()}, "y", budget="15s", n_seeds=3)


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
