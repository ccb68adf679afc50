"""The page of `fastbalance compare`: well-formed, whole or not there, and as a browser without network shows it."""

import re
from io import BytesIO

import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from fastbalance import compare_report
from fastbalance.compare_report import how_to_apply, page, write_report
from fastbalance.compare_verdict import WEIGHTED
from fastbalance.errors import ArgumentError

from .browser import find_browser
from .comparisons import Page, run_shortly, short_page, short_run

_PHONE = {"width": 390, "height": 844}
FORMS = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 800}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 800}},
    "phone": {"color_scheme": "light", "viewport": _PHONE, "is_mobile": True},
}
# Every run of text: its element, its colour and the one behind it, its place, and that of the cell or figure it is in.
TEXTS = """() => {
  const found = [], nodes = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const place = (it) => { const r = it.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom] };
  while (nodes.nextNode()) {
    const node = nodes.currentNode, element = node.parentElement, range = document.createRange();
    if (!node.data.trim() || element.closest("style")) continue;
    let behind = element;
    while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
    const style = getComputedStyle(element), within = element.closest("svg, th, td"), torn = [];
    for (const word of node.data.matchAll(/\\S+/g)) {
      range.setStart(node, word.index); range.setEnd(node, word.index + word[0].length);
      if (new Set([...range.getClientRects()].map((r) => Math.round(r.top))).size > 1) torn.push(word[0]);
    }
    range.selectNodeContents(node);
    found.push({ kind: element.tagName.toLowerCase(), text: node.data, torn, place: place(range),
      ink: element instanceof SVGElement ? style.fill : style.color, paper: getComputedStyle(behind).backgroundColor,
      within: within && place(within), cell: Boolean(element.closest("th, td:first-child")) });
  }
  return found }"""
# The colours of the arms, and what is left of their lines without colours: dashes and the shape of the marker.
LINES = """() => [...document.querySelectorAll(".key svg")].map((svg) => {
  const line = svg.querySelector("[id*=line2d] > path"), style = getComputedStyle(line);
  return [style.stroke, style.strokeDasharray + svg.querySelector("[id*=line2d] defs path").getAttribute("d")] })"""


def test_the_page_needs_no_network_and_is_well_formed():
    text = short_page()
    found = Page(text)
    assert found.open == []
    assert found.counts["figure"] == 5
    assert found.counts["svg"] == 5 + 8, "figures, and the lines of their key"
    assert all(link.startswith("#") for link in found.links), found.links
    assert not re.search(r"(@import|url\(\s*['\"]?(?!#))", text)
    identifiers = re.findall(r'\bid="([^"]+)"', text)
    assert len(identifiers) == len(set(identifiers))


@pytest.mark.parametrize("verdict", ["neither", "weight", "resample"])
@pytest.mark.parametrize("weighted", WEIGHTED)
def test_the_code_to_paste_is_python(verdict, weighted):
    changes = {"source": "data/*.parquet", "recommendation": {"verdict": verdict, "weighted": weighted}}
    code = how_to_apply({**short_run(), **changes})
    compile(code, "<page>", "exec")
    assert "'data/*.parquet', label='y'" in code


@pytest.mark.parametrize("n_done", [1, 3])
def test_an_interrupted_run_has_a_page_of_what_was_finished(n_done):
    def progress(stage, done, total):
        if (stage, done) == ("training", n_done):
            raise KeyboardInterrupt

    data = {"x": [k % 50 for k in range(400)], "y": [k % 7 == 0 for k in range(400)]}
    results = run_shortly(data, "y", progress=progress)
    assert results["interrupted"]
    assert len(results["arms"]) == 2 + n_done
    text = page(results)
    assert "this run was interrupted: only what was finished is here" in text
    assert Page(text).open == []
    assert Page(text).counts["figure"] == 5


def test_the_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    path.write_text("an older one")

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(compare_report.os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_report(short_run(), path)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("r.html", "an older one")]
    write_report(short_run(), path)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("r.html", short_page())]
    with pytest.raises(
        ArgumentError, match=r"--output: got \[Errno 2\] .*; allowed: a file in a directory that can be"
    ):
        write_report(short_run(), tmp_path / "no" / "r.html")


@pytest.fixture(scope="module")
def browser():
    # Playwright adds the switches that keep a browser from calling home.
    switches = ["--host-resolver-rules=MAP * ~NOTFOUND", "--disable-quic", "--disable-gpu"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=switches)
        yield browser
        browser.close()


def faults(browser, form, path):
    """What is wrong with a page as a browser shows it."""
    with browser.new_context(**FORMS[form]) as context:
        shown, asked, found = context.new_page(), [], []
        context.on("request", lambda request: asked.append(request.url))
        context.on("console", lambda message: found.append(f"console: {message.text}"))
        context.on("weberror", lambda error: found.append(f"console: {error.error}"))
        shown.goto(path.as_uri())
        found += [f"asks for {url}" for url in asked if url != path.as_uri()]
        found += [*_faults_of_text(shown.evaluate(TEXTS)), *_faults_of_figures(shown), *_faults_of_lines(shown)]
        size, width = FORMS[form]["viewport"], shown.evaluate("document.documentElement.scrollWidth")
        if width > size["width"]:
            found.append(f"scrolls sideways: {width} pixels")
        headline = shown.locator(".answer strong").bounding_box()
        if not 0 <= headline["y"] <= headline["y"] + headline["height"] <= size["height"]:
            found.append("the recommendation is not on the first screen")
        if (_luminance(shown.evaluate("getComputedStyle(document.body).backgroundColor")) < 0.5) != (form == "dark"):
            found.append("the paper is not of the scheme")
        return found


def _faults_of_text(texts):
    missing = {"h1", "p", "strong", "li", "pre", "th", "td", "figcaption", "text"} - {each["kind"] for each in texts}
    found = [f"no text in {kind}" for kind in missing]
    for each in texts:
        name = f"{each['kind']} {each['text']!r}"
        if _contrast(each["ink"], each["paper"]) < 4.5:
            found.append(f"contrast of {name}: {each['ink']} on {each['paper']}")
        left, top, right, bottom = each["within"] or each["place"]
        a, b, c, d = each["place"]
        if a < left - 1 or b < top - 1 or c > right + 1 or d > bottom + 1:
            found.append(f"cut off: {name}")
        if each["kind"] == "text" and min(c - a, d - b) < 10:
            found.append(f"tiny: {name}")
        found += [f"torn apart: {word} in {name}" for word in each["torn"] if each["cell"]]
    ours = [each for each in texts if each["kind"] == "text"]
    for k, each in enumerate(ours):
        overlaps = [other for other in ours[:k] if each["within"] == other["within"] and _overlap(each, other)]
        found += [f"overlap: {each['text']!r} and {other['text']!r}" for other in overlaps]
    return found


def _overlap(one, other):
    """Whether two texts share more than the space between lines."""
    (a, b, c, d), (e, f, g, h) = one["place"], other["place"]
    return min(c, g) - max(a, e) > 1 and min(d, h) - max(b, f) > 0.25 * min(d - b, h - f)


def _faults_of_figures(shown):
    arms, figures = {_rgb(colour) for colour, _ in shown.evaluate(LINES)}, shown.locator("figure svg").all()
    found = [] if len(figures) == 5 else [f"figures: {len(figures)}"]
    whole = Image.open(BytesIO(shown.screenshot(full_page=True))).convert("RGB")
    for k, figure in enumerate(figures):
        box = figure.bounding_box()
        picture = whole.crop((box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]))
        colours = {colour for _, colour in picture.getcolors(picture.width * picture.height)}
        if picture.width < 300 or picture.height < 200 or len(arms & colours) < 6:
            found.append(f"figure {k}: {picture.size}, shows the colours {arms & colours}")
    return found


def _faults_of_lines(shown):
    lines = shown.evaluate(LINES)
    paper = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    found = [f"faint line: {colour}" for colour, _ in lines if _contrast(colour, paper) < 3]
    return found if len({shape for _, shape in lines}) == 8 else [*found, "arms that differ only in colour"]


def _rgb(colour):
    return tuple(map(int, re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", colour).groups()))


def _luminance(colour):
    """Relative luminance. Source: WCAG 2.2."""
    parts = [part / 255 for part in _rgb(colour)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _contrast(one, other):
    """Contrast ratio, 1 to 21. Source: WCAG 2.2."""
    dark, light = sorted([_luminance(one), _luminance(other)])
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("form", FORMS)
def test_a_browser_shows_the_page_without_fault(browser, form, tmp_path):
    (tmp_path / "r.html").write_text(short_page(), encoding="utf-8")
    assert faults(browser, form, tmp_path / "r.html") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "part", "instead", "fault"),
    [
        ("light", "</h1>", '</h1><img src="https://example.com/a.png">', "asks for https://example.com/a.png"),
        ("light", "</h1>", "</h1><script>nothing()</script>", "console: nothing is not defined"),
        ("light", "--dim: #5c646e", "--dim: #9aa4af", "contrast of figcaption"),
        ("light", "figure svg { width: 100%", "figure svg { width: 50%", "figure 0"),
        ("light", ".answer {", ".answer { margin-top: 800px;", "the recommendation is not on the first screen"),
        ("light", "#7d838d", "#d0d4da", "faint line: rgb(208, 212, 218)"),
        ("dark", "(prefers-color-scheme: dark)", "(prefers-color-scheme: no)", "the paper is not of the scheme"),
        ("phone", "</h1>", '</h1><div style="width: 900px">-</div>', "scrolls sideways: 9"),
        ("phone", ".wide { overflow-x: auto }", "", "scrolls sideways: "),
        ("phone", "<wbr>", "", "torn apart: WeightedRandomSampler"),
        ("phone", "th, td {", "th { max-width: 2rem } th, td {", "cut off: th"),
        ("phone", "font-size: 9.5px", "font-size: 15px", "overlap: "),
        ("phone", "font-size: 9.5px", "font-size: 6px", "tiny: "),
    ],
)
def test_a_page_with_a_fault_is_found_out(browser, form, part, instead, fault, tmp_path):
    text = short_page()
    assert part in text
    (tmp_path / "r.html").write_text(text.replace(part, instead), encoding="utf-8")
    assert any(each.startswith(fault) for each in faults(browser, form, tmp_path / "r.html"))
