"""The page's doors for pictures: what people bring comes in as it is, or is named in a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pillow_heif
from PIL import Image as PILImage

from duogen.library.pictures import Gallery, PictureQuery
from duogen.picture_input import open_picture
from tests.support.browser import Server, browser_only, send
from tests.support.colour_profiles import matrix_profile
from tests.support.waiting import until


@browser_only
def test_a_photograph_of_a_telephone_is_seen(fast: Server, tab, tmp_path: Path) -> None:
    pillow_heif.from_pillow(PILImage.new("RGB", (120, 80), "red")).save(tmp_path / "IMG_0001.HEIC")
    page = tab(fast.address)
    page.set_input_files("#box input[type=file]", tmp_path / "IMG_0001.HEIC")
    page.wait_for_selector("#box .thumbnail-item")
    send(page, "What is this?")
    page.wait_for_selector("#talk .user img.picture")
    until(lambda: list(fast.home.glob("conversations/*/images/*.png")))


@browser_only
def test_the_studio_takes_alpha_and_colour_profile_as_they_are(fast: Server, tab, tmp_path: Path) -> None:
    colours = PILImage.new("RGBA", (64, 64), (200, 80, 60, 255))
    colours.paste((0, 0, 0, 0), (0, 0, 64, 32))
    colours.save(tmp_path / "half.png", icc_profile=matrix_profile("adobe-rgb"))
    (tmp_path / "broken.png").write_bytes((tmp_path / "half.png").read_bytes()[:-40])
    page = tab(fast.address)
    page.click("button[role=tab]:has-text('Studio')")
    page.set_input_files("#studio-upload input[type=file]", tmp_path / "broken.png")
    page.wait_for_selector("text=cannot be read as a picture: the PNG file is damaged or cut short")
    page.reload()
    page.click("button[role=tab]:has-text('Studio')")
    page.set_input_files("#studio-upload input[type=file]", tmp_path / "half.png")
    page.wait_for_selector("#studio", state="visible")
    (entry,) = Gallery(fast.home).find(PictureQuery())[0]
    picture = open_picture(entry.file)
    assert picture.getpixel((32, 8)) == (255, 255, 255)
    assert np.abs(np.subtract(picture.getpixel((32, 56)), (230, 79, 56))).max() <= 3
    assert b"iCCP" not in entry.file.read_bytes()
