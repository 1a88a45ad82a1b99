"""Makes the manual's images of the page again.

python -m tests.serve.screenshots docs
"""

import io
import sys
import tempfile
from pathlib import Path
from typing import Literal

import PIL.Image
from playwright.sync_api import Browser, Page, expect

from tests.serve.shipped import chromium, shipped_server

Scheme = Literal["light", "dark"]
PROMPT = "the zubetu emblem at the top left and the kungisu emblem at the bottom right on white"


def opened(browser: Browser, url: str, width: int, height: int, scheme: Scheme) -> Page:
    """The page with a prompt in it."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.set_default_timeout(300_000)
    page.goto(url)
    page.fill("#prompt", PROMPT)
    page.fill("#seed", "5")
    return page


def draw(page: Page, cards: int) -> None:
    """Draw, and wait for this many images and their documents."""
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("article[aria-busy=false]")).to_have_count(cards, timeout=300_000)
    page.wait_for_load_state("networkidle")


def save(page: Page, path: Path, whole: bool = True) -> None:
    """A screenshot in 128 colours, which is a third of the bytes; `whole` shows what is below the
    window, too."""
    with PIL.Image.open(io.BytesIO(page.screenshot(full_page=whole))) as image:
        image.convert("RGB").quantize(128).save(path, optimize=True)
    page.close()


def main(folder: Path) -> None:
    """Write `page-documents.png`, `page-compare.png` and `page-phone.png` into a folder."""
    with tempfile.TemporaryDirectory() as bank, shipped_server(Path(bank), "decoder") as server:
        with chromium() as browser:
            page = opened(browser, server.url, 1200, 700, "light")
            page.get_by_role("switch").check()
            draw(page, 3)
            save(page, folder / "page-compare.png")

            page = opened(browser, server.url, 1200, 700, "dark")
            page.select_option("#retrieve", "2")
            draw(page, 1)
            page.get_by_role("button", name="Where in the image").first.click()
            page.get_by_role("button", name="Caption").click()
            expect(page.get_by_role("status")).to_contain_text("done", timeout=300_000)
            save(page, folder / "page-documents.png")

            page = opened(browser, server.url, 390, 800, "light")
            page.select_option("#retrieve", "1")
            draw(page, 1)
            page.get_by_role("button", name="Paint over").click()
            for key in ("Shift+ArrowDown", "Space", "Shift+ArrowRight", "Space"):
                page.keyboard.press(key)
            save(page, folder / "page-phone.png", whole=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
