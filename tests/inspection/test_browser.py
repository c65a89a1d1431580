"""The page in a real browser: quiet, closed to the network, usable by keyboard, on a phone and in the dark."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest

from mrcnn_tf.inspection.inspect import inspect
from mrcnn_tf.inspection.page import page, write_page
from tests.inspection.planted import SIDE, entry, planted, write
from tests.inspection.reports import hand_made, item

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
)

TABBED = """() => {
  document.querySelectorAll('*').forEach((element, i) => element.dataset.number = i);
  return [...document.querySelectorAll('a, summary, [tabindex="0"], input')].filter(
    (element) => !element.closest('[hidden]') && element.checkVisibility()
      && (element.type !== 'radio' || element.checked)
  ).map((element) => element.dataset.number);
}"""
RATIO = """([text, back]) => {
  const light = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).map((v) => v / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [low, high] = [light(text), light(back)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}"""


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium found; install the package chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, tmp_path):
    """`opened(report)`: the report's page in a tab that must stay quiet; settings are the context's."""
    contexts, noise = [], []

    def get(report, **settings):
        file = tmp_path / "page.html"
        write_page(report, file)
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | settings)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: noise.append(message.text))
        tab.on("pageerror", lambda error: noise.append(str(error)))
        tab.on("request", lambda request: noise.append(request.url) if foreign(request.url, file) else None)
        tab.goto(file.as_uri())
        return tab

    yield get
    for context in contexts:
        context.close()
    assert noise == []


def foreign(url, file):
    return url.split("#")[0] != file.as_uri() and not url.startswith("data:")


def test_findings_are_on_the_first_screen(opened):
    for size in ({"width": 1280, "height": 800}, {"width": 360, "height": 740}):
        tab = opened(hand_made(), viewport=size)
        box = tab.get_by_text("model.nms_threshold=0.5").bounding_box()
        assert box["y"] + box["height"] < size["height"]


def test_every_control_is_reached_by_tab(opened):
    tab = opened(hand_made())
    wanted = tab.evaluate(TABBED)
    reached = []
    for _ in wanted:
        tab.keyboard.press("Tab")
        reached.append(tab.evaluate("document.activeElement.dataset.number"))
    assert reached == wanted and len(wanted) >= 20


def test_skip_link(opened):
    tab = opened(hand_made())
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    assert tab.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"


def test_numbers_unfold_by_enter_and_space(opened):
    tab = opened(hand_made())
    summaries = tab.locator("summary")
    for i in range(summaries.count()):
        summaries.nth(i).focus()
        for key, state in (("Enter", True), ("Space", False)):
            tab.keyboard.press(key)
            assert summaries.nth(i).evaluate("e => e.parentElement.open") is state
        assert summaries.nth(i).evaluate("e => getComputedStyle(e).outlineStyle") == "solid"


def seen(tab, which):
    return tab.locator(f".picture g.{which}").evaluate_all(
        "layers => layers.map((e) => getComputedStyle(e).visibility === 'visible')"
    )


@pytest.mark.parametrize("script", [True, False])
def test_a_picture_is_switched_by_arrow_keys(opened, script):
    tab = opened(hand_made(), java_script_enabled=script)
    assert seen(tab, "truth") == seen(tab, "prediction") == [True] * 4
    tab.locator(".picture input:checked").nth(1).focus()
    tab.keyboard.press("ArrowLeft")
    assert (seen(tab, "truth"), seen(tab, "prediction")) == ([True, False, True, True], [True] * 4)
    tab.keyboard.press("ArrowLeft")
    assert (seen(tab, "truth"), seen(tab, "prediction")) == ([True] * 4, [True, False, True, True])
    assert tab.locator("#all-pictures").is_visible() is script


def test_all_pictures_are_switched_at_once(opened):
    tab = opened(hand_made())
    tab.locator("#all-pictures input:checked").focus()
    tab.keyboard.press("ArrowLeft")
    assert seen(tab, "truth") == [False] * 4 and seen(tab, "prediction") == [True] * 4
    tab.locator("#all-pictures").get_by_label("truth").check()
    assert seen(tab, "truth") == [True] * 4 and seen(tab, "prediction") == [False] * 4


def test_nothing_scrolls_sideways_on_a_phone(opened):
    report = hand_made()
    long = "a_very_long_name_without_any_space_" * 6
    report["source"]["model"] = long
    report["findings"][0]["setting"] = long
    report["notes"] = [long]
    report["confusion"]["classes"] = [long, "dog", "owl"]
    report["pictures"]["groups"][0]["items"] = [item(long, long)]
    tab = opened(report, viewport={"width": 360, "height": 740})
    tab.evaluate("document.querySelectorAll('details').forEach((d) => d.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    # Letters of the charts are readable there.
    heights = tab.locator("figure.chart text").evaluate_all(
        "texts => texts.map((t) => t.getBoundingClientRect().height)"
    )
    assert min(heights) > 11


def test_light_and_dark_have_contrast(opened):
    seen = []
    for scheme in ("light", "dark"):
        tab = opened(hand_made(), color_scheme=scheme)
        back = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        seen.append(back)
        for selector, property, least in (
            *((s, "fill", 4.5) for s in ("svg .label", "svg .value")),
            *((s, "fill", 3) for s in ("svg .bar", "svg .strong", "svg .dot")),
            *((s, "stroke", 3) for s in ("svg .line", "svg .axis", "svg .mark")),
            *((s, "color", 4.5) for s in ("body", ".source", "figcaption", "summary", ".badge", "nav a")),
        ):
            for value in set(
                tab.locator(selector).evaluate_all(f"all => all.map((e) => getComputedStyle(e).{property})")
            ):
                assert tab.evaluate(RATIO, [value, back]) >= least, (scheme, selector, value)
    light, dark = seen
    assert light == "rgb(255, 255, 255)" and tab.evaluate(RATIO, [light, dark]) > 10


@pytest.mark.parametrize(
    "settings", [{}, {"color_scheme": "dark"}, {"viewport": {"width": 360, "height": 740}}]
)
def test_accessibility_rules(opened, settings):
    tab = opened(hand_made(), **settings)
    tab.evaluate("document.querySelectorAll('details').forEach((d) => d.open = true)")
    violations = axe.Axe().run(tab).response["violations"]
    assert [(v["id"], [n["html"][:120] for n in v["nodes"][:3]]) for v in violations] == []


def test_accessibility_rules_find_something(opened):
    tab = opened(hand_made())
    tab.evaluate("document.querySelector('svg[role=img]').removeAttribute('aria-labelledby')")
    tab.evaluate("document.querySelectorAll('svg[role=img] > title').forEach((t) => t.remove())")
    assert "svg-img-alt" in [v["id"] for v in axe.Axe().run(tab).response["violations"]]


def test_hostile_names_do_not_run(opened, tmp_path):
    hostile = "<img src=x onerror='window.ran=1'><script>window.ran=1</script>\"><b>"
    truth, results = planted(classes=(hostile, hostile + "2"))
    files = write(tmp_path / "set", truth, results)
    report = inspect(**files)
    for group in report["pictures"]["groups"]:
        for shown in group["items"]:
            shown["file_name"] = hostile
    tab = opened(report)
    assert tab.evaluate("window.ran") is None
    assert tab.locator("img, b, main script").count() == 0
    assert tab.get_by_text("onerror").count() > 5


def test_the_policy_holds_even_if_something_slips_in(browser, tmp_path):
    text = page(hand_made()).replace(
        "</main>", '<script>window.ran=1</script><img src="http://127.0.0.1:9/x.png"></main>'
    )
    (tmp_path / "p.html").write_text(text, encoding="utf-8")
    tab = browser.new_page()
    blocked, asked = [], []
    tab.on("console", lambda message: blocked.append(message.text))
    tab.on("requestfinished", lambda request: asked.append(request.url))
    tab.goto((tmp_path / "p.html").as_uri())
    assert tab.evaluate("window.ran") is None
    assert len([m for m in blocked if "Content Security Policy" in m]) == 2
    assert not [url for url in asked if url.startswith("http")]
    tab.close()


def test_500_images_stay_small(opened, tmp_path):
    truth, _ = planted(images=500)
    rng = np.random.default_rng(0)
    results = []
    for image in truth["images"]:
        image.update(file_name="noise.png", height=800, width=1200)
        for _ in range(20):
            x, y = (int(v) for v in rng.integers(0, SIDE - 16, 2))
            found = entry(image["id"], int(rng.integers(3, 5)), (x, y, 16, 16), float(rng.uniform(0.3, 1)))
            results.append({**found, "bbox": [x * 12, y * 12, 192, 192]})
            del results[-1]["segmentation"]
    (tmp_path / "set").mkdir()
    cv2.imwrite(str(tmp_path / "set" / "noise.png"), rng.integers(0, 256, (800, 1200, 3), np.uint8))
    files = write(tmp_path / "set", {**truth, "images": []}, results)
    (files["annotations"]).write_text(json.dumps(truth))
    report = inspect(files["annotations"], results=files["results"], images=tmp_path / "set")
    tab = opened(report)
    assert tab.locator(".picture").count() == 24
    assert "24 pictures of 500 images" in tab.locator("main").inner_text()
    assert (tmp_path / "page.html").stat().st_size < 20e6
