"""A real browser: Debian's Chromium, without a window."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
SCREENSHOTS = Path(__file__).parent / "screenshots"  # ignored by git; CI keeps them
# The last five keep it from looking for Google's hosts.
OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@contextmanager
def chromium(width: int = 1400, height: int = 1000, *options: str) -> Iterator[Any]:
    """Gives a browser of Selenium's; skips the test where there is none."""
    if not (CHROMIUM.exists() and DRIVER.exists()):
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    from selenium import webdriver

    profile = tempfile.mkdtemp()
    settings = webdriver.ChromeOptions()
    settings.binary_location = str(CHROMIUM)
    settings.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for option in (*OPTIONS, f"--user-data-dir={profile}", f"--window-size={width},{height}", *options):
        settings.add_argument(option)
    browser = webdriver.Chrome(options=settings, service=webdriver.ChromeService(str(DRIVER)))
    try:
        yield browser
    finally:
        browser.quit()
        shutil.rmtree(profile, ignore_errors=True)


def screenshot(browser: Any, name: str) -> None:
    """Keeps what the browser shows, for a person to look at."""
    SCREENSHOTS.mkdir(exist_ok=True)
    browser.save_screenshot(str(SCREENSHOTS / f"{name}.png"))
