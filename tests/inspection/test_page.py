"""The page as text: whole, escaped, closed to the network; charts hold their numbers."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from mrcnn_tf.inspection import charts
from mrcnn_tf.inspection.page import page, write_page
from tests.inspection.reports import hand_made, item

VOID = {"meta", "link", "input"}
HOSTILE = "<script>alert('x')</script>\"'&amp;</title></style>"


class Checker(HTMLParser):
    """Collects what is wrong with a page's structure, its ids and addresses."""

    def __init__(self):
        super().__init__()
        self.open, self.problems, self.ids, self.wanted, self.headings = [], [], set(), set(), []
        self.scripts = 0

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        self.scripts += tag == "script"
        if "id" in values:
            if values["id"] in self.ids:
                self.problems.append(f"id {values['id']} twice")
            self.ids.add(values["id"])
        self.wanted |= set(values.get("aria-labelledby", "").split())
        for name, value in attributes:
            if name.startswith("on") or name == "style":
                self.problems.append(f"attribute {name}")
            if name in ("src", "href") and not value.startswith(("#", "data:")):
                self.problems.append(f"address {value}")
            if name == "href" and value.startswith("#"):
                self.wanted.add(value[1:])
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> closes nothing")


def problems_of(text):
    """What is wrong with a page."""
    checker = Checker()
    checker.feed(text)
    checker.close()
    problems = checker.problems + [f"<{tag}> is not closed" for tag in checker.open]
    problems += [f"no id {i}" for i in checker.wanted - checker.ids]
    problems += [] if checker.scripts == 1 else [f"{checker.scripts} scripts"]
    steps = [b - a for a, b in zip([0, *checker.headings], checker.headings, strict=False)]
    problems += ["a heading's level is left out"] if max(steps) > 1 or checker.headings.count(1) != 1 else []
    return problems


def test_checker_finds_problems():
    assert problems_of("<h1>a</h1><script></script>") == []
    for text in (
        "<h1>a<p></h1>",
        '<h1>a</h1><img src="http://x"/>',
        '<h1>a</h1><a href="#b">c</a>',
        "<h1></h1><h3></h3>",
    ):
        assert problems_of(text + "<script></script>")


def test_whole_page():
    text = page(hand_made())
    assert not problems_of(text)
    assert text.startswith("<!DOCTYPE html>") and '<html lang="en">' in text
    first = text.index("Instances are found several times")
    assert first < text.index("model.nms_threshold=0.5") < text.index('<h2 id="proposals">')


def test_policy_allows_the_pages_own_script_and_style_only():
    text = page(hand_made())
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag in ("style", "script"):
        content = re.search(f"<{tag}>(.*?)</{tag}>", text, re.S)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_names_from_the_data_are_escaped():
    report = hand_made()
    report["source"] |= {"model": f"runs/{HOSTILE}.keras", "annotations": HOSTILE}
    report["notes"] = [HOSTILE]
    report["findings"] = [
        {"severity": "low", "title": HOSTILE, "text": HOSTILE, "setting": HOSTILE, "how": "run"}
    ]
    report["confusion"]["classes"] = [HOSTILE, "dog", "owl"]
    report["anchors"]["text"] = HOSTILE
    report["by_size"][0]["label"] = HOSTILE
    report["pictures"]["groups"][0] |= {"title": HOSTILE, "text": HOSTILE, "items": [item(HOSTILE, HOSTILE)]}
    text = page(report)
    assert not problems_of(text)
    assert "<script>alert" not in text and text.count("&lt;script&gt;alert") >= 12


@pytest.mark.parametrize(
    "part", ["proposals", "anchors", "overlaps", "sweep", "boundary", "calibration", "pictures"]
)
def test_a_part_that_is_not_there_says_why(part):
    text = page(hand_made(**{part: None}))
    assert not problems_of(text)
    said = {
        "proposals": "give --model",
        "anchors": "No anchors to judge",
        "overlaps": "There are no detections",
        "sweep": "The NMS threshold cannot be judged",
        "boundary": "AP by size",
        "calibration": "No calibration",
        "pictures": "give --images",
    }
    assert said[part] in text


def test_every_chart_has_title_description_and_numbers():
    text = page(hand_made())
    figures = re.findall(r'<figure class="chart">(.*?)</figure>', text, re.S)
    assert len(figures) == 7
    for figure in figures:
        assert "<title" in figure and re.search(r"<desc[^>]*>[^<]{5}", figure)
        assert '<th scope="col">' in figure and "<caption>" in figure
    # The numbers of the sweep's chart, in its table.
    assert all(f"<td>{value}</td>" in figures[2] for value in ("0.400", "0.410", "0.415", "0.380", "0.200"))


def test_lengths_of_bars_are_in_proportion():
    svg = charts.bars("k", "t", "d", [("a", 0.1), ("b", 0.2), ("c", -1.0)])
    widths = [float(w) for w in re.findall(r'width="([\d.]+)"', svg)]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.2) and widths[2] == 0
    assert ">–<" in svg


def test_points_lie_where_their_values_are():
    svg = charts.lines("k", "t", "d", [(0.0, 0.0), (0.5, 1.0), (1.0, 0.5)], axis="x", y_range=(0, 1))
    xs = [float(x) for x in re.findall(r'cx="([\d.]+)"', svg)]
    ys = [float(y) for y in re.findall(r'cy="([\d.]+)"', svg)]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert ys[0] > ys[2] > ys[1] and ys[0] - ys[2] == pytest.approx(ys[2] - ys[1], abs=0.2)


def test_flat_lines_stay_flat():
    svg = charts.lines("k", "t", "d", [(0.3, 0.4231), (0.9, 0.4230)], axis="x")
    ys = [float(y) for y in re.findall(r'cy="([\d.]+)"', svg)]
    assert abs(ys[0] - ys[1]) < 2


def test_numbers():
    assert [charts.number(v) for v in (None, -1.0, float("nan"), 0.5, 7, "<a>")] == [
        "–",
        "–",
        "–",
        "0.500",
        "7",
        "&lt;a&gt;",
    ]


def test_write_page_is_whole_or_not_there(tmp_path):
    write_page(hand_made(), tmp_path / "p.html")
    assert (tmp_path / "p.html").read_text(encoding="utf-8") == page(hand_made())
    assert [p.name for p in tmp_path.iterdir()] == ["p.html"]
    with pytest.raises(OSError, match=r"p.html"):
        write_page(hand_made(), tmp_path / "p.html" / "q.html")
