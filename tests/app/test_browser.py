"""The page in Chromium, as a visitor uses it; what it computes is tested in test_bench.py."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from speech import speech

from tiny import FSP, RATE, VP, noise_images, tiny_codec, tiny_vae
from vpvae_hf.data import read_codes

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(None in (CHROMIUM, DRIVER), reason="Chromium or its chromedriver is not installed")
PATIENCE = 60  # seconds


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Folders of a tokenizer of pictures with codebooks of 16 and 64 codes, and of one of sounds."""
    folder = tmp_path_factory.mktemp("tokenizers")
    vae = tiny_vae(VP)
    latents = vae.latent_vectors(noise_images(8)).flatten(0, -2)
    vae.set_codebooks([latents[:16], latents[16:80]])
    vae.save_pretrained(folder / "pictures")
    tiny_codec(FSP).save_pretrained(folder / "sounds")
    return [folder / "pictures", folder / "sounds"]


@pytest.fixture(scope="module")
def address(tokenizers, tmp_path_factory):
    """The address of the page, which the command serves."""
    command = [sys.executable, "-m", "vpvae_hf", "app", "--no-browser", "--device", "cpu", "--tokenizer", *tokenizers]
    log = tmp_path_factory.mktemp("log") / "app.txt"
    with log.open("w") as opened:
        alone = os.environ | {"OMP_NUM_THREADS": "1"}
        started = subprocess.Popen(command, stdout=opened, stderr=subprocess.STDOUT, env=alone)
    try:
        end = time.monotonic() + 300
        while "the page is at " not in log.read_text():
            assert started.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield log.read_text().split("the page is at ")[1].split("; ")[0]
    finally:
        started.terminate()
        started.wait(300)


@dataclass
class Browser:
    """Chromium on the page, and the folder that it downloads into."""

    driver: webdriver.Chrome
    downloads: Path

    def wait(self, condition: Callable[[], object]) -> object:
        waiting = WebDriverWait(self.driver, PATIENCE, 0.05, ignored_exceptions=[StaleElementReferenceException])
        try:
            return waiting.until(lambda _: condition())
        except TimeoutException:
            raise AssertionError(f"the page shows:\n{self.driver.find_element(By.TAG_NAME, 'body').text}") from None

    def find(self, selector: str):
        return self.wait(lambda: next(iter(self.driver.find_elements(By.CSS_SELECTOR, selector)), None))

    def text(self, name: str) -> str:
        return self.find(f"#{name}").text

    def give(self, name: str, file: Path) -> None:
        self.find(f"#{name} input[type=file], input[type=file]:has(+ #{name})").send_keys(str(file))

    def told(self, kind: str, *parts: str) -> str:
        """The notice, once it holds all parts."""
        self.wait(lambda: all(part in self.text(f"{kind}-notice") for part in parts))
        return self.text(f"{kind}-notice")

    def click_at(self, name: str, x: float, y: float) -> None:
        """Click into a picture, at shares of its width and height."""

        def click(picture) -> None:
            offset = round((x - 0.5) * picture.size["width"]), round((y - 0.5) * picture.size["height"])
            ActionChains(self.driver).move_to_element_with_offset(picture, *offset).click().perform()

        self._when_shown(f"#{name} img", click)

    def press(self, name: str) -> None:
        self._when_shown(f"#{name}", lambda button: button.click())

    def _when_shown(self, selector: str, act: Callable[[object], None]) -> None:
        """Act on an element, and once more if the page has redrawn it meanwhile."""

        def done() -> bool:
            element = self.find(selector)
            if not element.is_enabled():
                return False
            self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
            act(element)
            return True

        self.wait(done)

    def asked_for(self) -> set[str]:
        """Addresses of everything that was requested since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
        return {url for url in sent if not url.startswith(("data:", "blob:"))}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    downloads = tmp_path_factory.mktemp("downloads")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1280,900"):
        options.add_argument(f"--{argument}")
    for argument in ("use-fake-device-for-media-stream", "use-fake-ui-for-media-stream"):
        options.add_argument(f"--{argument}")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(DRIVER)) as driver:
        yield Browser(driver, downloads)


@pytest.fixture
def browser(opened, address):
    opened.driver.get(address)
    opened.find("#image-file input[type=file]")
    return opened


@pytest.fixture
def picture(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(values).resize((58, 37), Image.Resampling.BICUBIC).save(tmp_path / "own.png")
    return tmp_path / "own.png"


def test_a_picture_its_codes_and_those_codes_again(browser, picture, address):
    browser.give("image-file", picture)
    browser.told("image", "58 x 37 pixels. 150 codes, K = 16")
    browser.find("#image-swipe img")
    parts = ("K = 16", "WebP", "PNG", "PSNR", "Higher is closer")
    browser.wait(lambda: all(part in browser.text("image-table") for part in parts))
    assert "a tokenizer of pictures: 1 code per 4 x 4 pixels" in browser.find("body").text
    browser.find("#image-size input[type=range]").send_keys(Keys.ARROW_RIGHT)
    browser.told("image", "150 codes, K = 64")
    browser.wait(lambda: "K = 64" in browser.text("image-table"))
    browser.press("image-download")
    saved = browser.downloads / "own.safetensors"
    browser.wait(saved.exists)
    codes, header = read_codes(saved)
    assert (list(codes.shape), header["codebook_size"]) == ([10, 15], "64")
    browser.click_at("image-map", 7.5 / 15, 5.5 / 10)
    browser.wait(lambda: f"Code {codes[5, 7]} is used" in browser.text("image-chosen"))
    browser.click_at("image-sheet", 0.5 / 8, 7.5 / 8)
    another = browser.wait(lambda: int(browser.find("#image-code input").get_attribute("value")))
    assert another != codes[5, 7]
    browser.press("image-everywhere")
    count = int((codes == codes[5, 7]).sum())
    browser.told("image", f"{count} replaced")
    browser.press("image-restore")
    browser.wait(lambda: "replaced" not in browser.text("image-notice"))
    browser.give("image-load", saved)
    browser.told("image", "58 x 37 pixels, from the codes of own.safetensors", "K = 64")
    browser.find("#image-alone img")
    assert [url for url in browser.asked_for() if not url.startswith(address)] == []


def test_what_cannot_be_read_is_told_and_the_page_goes_on(browser, picture, tokenizers, tmp_path):
    (tmp_path / "broken.png").write_bytes(picture.read_bytes()[:60])
    browser.give("image-file", tmp_path / "broken.png")
    assert "/" not in browser.told("image", "broken.png")
    (tmp_path / "none.safetensors").write_bytes(b"none")
    browser.give("image-load", tmp_path / "none.safetensors")
    browser.told("image", "none.safetensors: it is damaged, or no file of codes")
    pixels = np.random.default_rng(0).integers(0, 256, (243, 324, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((5184, 3888)).save(tmp_path / "camera.jpg")
    browser.give("image-file", tmp_path / "camera.jpg")
    browser.told("image", "5,184 x 3,888 pixels, scaled down to 512 x 384", "12,288 codes")


def test_sounds(browser, tmp_path):
    tabs = browser.driver.find_elements(By.CSS_SELECTOR, "button[role=tab]")
    next(tab for tab in tabs if tab.text == "sounds").click()
    soundfile.write(tmp_path / "own.wav", speech(0.8).numpy(), RATE)
    browser.give("audio-file", tmp_path / "own.wav")
    browser.told("audio", "0.80 s. 134 codes, K = 36")
    browser.find("#audio-spectrograms img")
    browser.wait(lambda: "FLAC" in browser.text("audio-table"))
    browser.click_at("audio-map", 0.1, 0.1)
    browser.wait(lambda: "is used" in browser.text("audio-chosen"))
    browser.click_at("audio-sheet", 0.1, 0.7)
    browser.wait(lambda: int(browser.find("#audio-code input").get_attribute("value")))
    browser.press("audio-here")
    browser.told("audio", "replaced")
