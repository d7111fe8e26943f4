"""The demo in a real headless Chromium: what a person does, and what the page asks for.

It needs the extra app, `pip install playwright` and `apt-get install chromium`: the one
that playwright downloads is not needed. Another place of it is named in CHROMIUM.
"""

import os
import shutil
from pathlib import Path

import pytest
from app_process import running

import keras_mixer
from keras_mixer.app.drawings import draw

pytest.importorskip("gradio", reason="needs the extra app")
sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
if not CHROMIUM or not Path(CHROMIUM).exists():
    pytest.skip(
        "no Chromium: apt-get install chromium, or name it in CHROMIUM",
        allow_module_level=True,
    )

# Playwright's own event loop is not closed in its tests either.
pytestmark = [
    pytest.mark.backend_free,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
WAIT = 90_000  # milliseconds: a busy machine


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    with running(tmp_path_factory.mktemp("demo") / "run") as process:
        yield process


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(demo, browser):
    """A function that opens the page; what it asked for is in `page.asked`."""
    pages = []

    def open_page(width=1100, height=1200):
        page = browser.new_page(viewport={"width": width, "height": height})
        pages.append(page)
        page.set_default_timeout(WAIT)
        page.asked, page.failures = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.failures.append(str(error)))
        page.goto(f"http://127.0.0.1:{demo.port}")
        page.locator("#facts").get_by_text("parameters").wait_for()
        return page

    yield open_page
    for page in pages:
        page.close()


def wait_for_class(page, name):
    page.wait_for_function(
        "name => document.querySelector('#classes h2')?.innerText.trim() === name",
        arg=name,
    )


def upload(page, *paths):
    page.locator("#pictures input[type=file]").set_input_files(list(map(str, paths)))


def test_an_example_its_classes_and_its_evidence(open_page, demo):
    page = open_page()
    page.get_by_role("button", name="ship").click()
    wait_for_class(page, "ship")
    first = page.locator("#evidence img")
    first.wait_for()
    before = first.get_attribute("src")
    page.get_by_label("occlusion").check()
    page.wait_for_function(
        "src => document.querySelector('#evidence img').src !== src", arg=before
    )
    page.get_by_role("tab", name="Filters").click()
    page.locator("#token-mixing img").wait_for()
    hosts = {url.split("/")[2] for url in page.asked if url.startswith("http")}
    assert hosts == {f"127.0.0.1:{demo.port}"}
    assert page.failures == []


def test_several_pictures_a_bad_one_and_the_table(open_page, tmp_path):
    page = open_page()
    draw("ship").save(tmp_path / "a.png")
    draw("horse").save(tmp_path / "b.jpg")
    (tmp_path / "bad.png").write_bytes(b"hello")
    upload(page, tmp_path / "a.png", tmp_path / "bad.png", tmp_path / "b.jpg")
    wait_for_class(page, "ship")
    assert "bad.png: it is no picture" in page.locator("#notice").inner_text()
    with page.expect_download() as download:
        page.locator("#csv").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert [line.split(",")[:2] for line in lines[1:]] == [
        ["a.png", "ship"],
        ["bad.png", ""],
        ["b.jpg", "horse"],
    ]
    page.locator("#picture input").click()
    page.get_by_role("option", name="3. b.jpg").click()
    wait_for_class(page, "horse")


def test_a_bad_file_alone_gets_a_sentence(open_page, tmp_path):
    page = open_page()
    (tmp_path / "bad.png").write_bytes(b"hello")
    upload(page, tmp_path / "bad.png")
    page.get_by_text("bad.png: it is no picture. Expected a JPEG").first.wait_for()


def test_a_second_model(open_page, tmp_path):
    model = keras_mixer.MixerTi4(num_classes=3, labels=("ant", "bee", "cat"))
    model.save(tmp_path / "second.keras")
    page = open_page()
    page.get_by_role("button", name="ship").click()
    wait_for_class(page, "ship")
    box = page.locator("#model input")
    box.fill(str(tmp_path / "second.keras"))
    box.press("Enter")
    box.press("Tab")
    page.locator("#facts").get_by_text("3 classes").wait_for()
    page.locator("#classes").get_by_text("bee").first.wait_for()
    box.fill("/nowhere.keras")
    box.press("Enter")
    box.press("Tab")
    page.get_by_text("Choose a model of the list, or give hf://").first.wait_for()


def test_a_narrow_window_and_the_keyboard(open_page):
    page = open_page(360, 740)
    reached, chosen = set(), False
    for _ in range(50):  # around the page, and once more after the result is there
        page.keyboard.press("Tab")
        text = page.evaluate("document.activeElement.innerText.trim()")
        reached.add(text)
        if text == "horse" and not chosen:
            page.keyboard.press("Enter")
            wait_for_class(page, "horse")
            chosen = True
    assert {"ship", "airplane", "automobile", "Evidence", "Filters"} <= reached
    assert chosen
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
