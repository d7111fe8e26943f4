"""Makes the pictures of the demo in `docs/images/`: app.png and app-phone.png.

    pip install '.[torch,app]' playwright && apt-get install chromium
    KERAS_BACKEND=torch python docs/make_screenshots.py

Chromium in another place is named in the variable CHROMIUM.
"""

import os
import queue
import shutil
import subprocess
import sys
import threading
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

IMAGES = Path(__file__).parent / "images"
SIZES = {"app.png": (1000, 1180), "app-phone.png": (390, 1180)}  # of the windows


def main() -> None:
    """Start the demo, take the pictures, end it."""
    command = [sys.executable, "-m", "keras_mixer", "app", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
        try:
            address = first_line(demo).split()[1]
            with sync_playwright() as playwright:
                chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
                browser = playwright.chromium.launch(
                    executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
                )
                for name, size in SIZES.items():
                    take(browser, address, IMAGES / name, size)
                browser.close()
        finally:
            demo.terminate()


def first_line(process: subprocess.Popen[str]) -> str:
    """Return the first line that a process prints."""
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(
        target=lambda: lines.put(process.stdout.readline()), daemon=True
    ).start()
    return lines.get(timeout=300)


def take(browser: Browser, address: str, path: Path, size: tuple[int, int]) -> None:
    """Take a picture of the page with the ship."""
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    page.set_default_timeout(120_000)
    page.goto(address)
    page.locator("#facts").get_by_text("parameters").wait_for()
    page.get_by_role("button", name="ship").click()
    page.locator("#evidence img").wait_for()
    page.mouse.move(0, 0)
    page.wait_for_timeout(1500)
    page.screenshot(path=path, full_page=True)
    page.close()
    # A palette would lose the light tints of the evidence map.
    with Image.open(path) as image:
        image.convert("RGB").save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
