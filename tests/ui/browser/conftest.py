"""A served page with the bundled model, and a Chromium that looks at it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--autoplay-policy=no-user-gesture-required",
)


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("gradio", reason='needs pip install "nrg-sampler[app]"')
    from nrg_sampler.ui.engine import Engine
    from nrg_sampler.ui.server import build, launch

    root = tmp_path_factory.mktemp("outputs").resolve()
    engine = Engine(device="cpu")
    engine.warm(next(iter(engine.models)))
    blocks = build(engine, root)
    _, url, _ = launch(blocks, root, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    yield url
    blocks.close(verbose=False)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason='needs pip install "nrg-sampler[test]"')
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs Chromium and ChromeDriver, on Debian: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    chromium = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chromium
    chromium.quit()


class Visit:
    """One open page, in the visitor's words."""

    def __init__(self, chromium: Any) -> None:
        self.chromium = chromium

    def resize(self, width: int, height: int = 900, dark: bool = False) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def js(self, script: str, *arguments: Any) -> Any:
        return self.chromium.execute_script(script, *arguments)

    def find(self, selector: str) -> Any:
        """Return an element as soon as it is there: parts of the page are put in place one after the other."""
        return self.until(lambda: self.all(selector))[0]

    def all(self, selector: str) -> list[Any]:
        return list(self.chromium.find_elements("css selector", selector))

    def text(self, selector: str) -> str:
        return str(self.js("return document.querySelector(arguments[0])?.innerText ?? ''", selector))

    def value(self, selector: str) -> str:
        return str(self.js("return document.querySelector(arguments[0]).value", selector))

    def click(self, selector: str) -> None:
        element = self.find(selector)
        self.js("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def tab(self, name: str) -> None:
        self.js(
            "[...document.querySelectorAll('#nrg-tabs button[role=tab]')]"
            ".find(b => b.innerText.trim() === arguments[0]).click()",
            name,
        )

    def type(self, selector: str, text: str) -> None:
        """Replace what a field holds, as a visitor would, and leave it."""
        from selenium.webdriver.common.keys import Keys

        field = self.find(selector)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text, Keys.TAB)

    def until(self, holds: Callable[[], Any], seconds: float = 120.0) -> Any:
        """Wait until something holds, and return it."""
        deadline = time.monotonic() + seconds
        while not (found := holds()):
            assert time.monotonic() < deadline, f"waited {seconds:.0f} s; the page says: {self.text('#nrg-status')}"
            time.sleep(0.05)
        return found

    def status_is(self, text: str, seconds: float = 120.0) -> None:
        self.until(lambda: text in self.text("#nrg-status"), seconds)

    def sample(self, seconds: float = 120.0) -> None:
        """Press the button and wait for the pair."""
        self.click("#nrg-go")
        self.until(lambda: "Done" not in self.text("#nrg-status"))
        self.status_is("Done", seconds)

    def screenshot(self, path: Path, width: int) -> None:
        """Write a picture of the whole page, however long it is."""
        self.js("window.scrollTo(0, 0)")
        height = int(self.js("return document.documentElement.scrollHeight"))
        dark = bool(self.js("return matchMedia('(prefers-color-scheme: dark)').matches"))
        self.resize(width, max(600, height), dark)
        time.sleep(0.5)
        self.chromium.save_screenshot(str(path))


@pytest.fixture
def visit(chromium: Any, url: str, request: pytest.FixtureRequest) -> Iterator[Visit]:
    """A fresh page with few steps; with ``NRG_SCREENSHOTS=FOLDER`` its picture is kept at the end."""
    width, dark = getattr(request, "param", (1280, False))
    visit = Visit(chromium)
    visit.resize(width, dark=dark)
    chromium.get(url)
    visit.status_is("Ready", seconds=180)
    visit.type("#nrg-steps input[type=number]", "6")
    yield visit
    folder = os.environ.get("NRG_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        visit.screenshot(Path(folder) / f"{request.node.name.replace('/', '-')}.png", width)
