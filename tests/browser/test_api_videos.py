"""The API's videos: a picture set in motion as a job, its file, and what is refused."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import av
import httpx
import pytest
from PIL import Image as PILImage

from duogen.options import LoadOptions
from tests.support.api import picture, png, serve
from tests.support.waiting import patience, until
from ui.api.openai import Api
from ui.parts.loading import Loading


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.video import small_wan

    return small_wan(tmp_path_factory.mktemp("models") / "wan")


@pytest.fixture(scope="module")
def program() -> Iterator[httpx.Client]:
    loading = Loading(load=LoadOptions(device="cpu", painter_precision="fp32"))
    loading.finished.set()
    with serve(Api(loading)) as address, httpx.Client(base_url=address, timeout=patience()) as client:
        yield client


def test_a_video_is_asked_for_watched_fetched_and_deleted(program: httpx.Client, model: Path) -> None:
    asked = {"prompt": "It moves", "input_reference": picture(), "last_image": picture("blue"), "model": str(model), "seconds": "0.5"}
    job = program.post("/videos", json=asked | {"seed": 4, "size": "1280x720"}).json()
    assert (job["object"], job["status"] in ("queued", "in_progress"), job["prompt"]) == ("video", True, "It moves")
    assert job["notices"] == ["These fields have no effect here: size."]
    until(lambda: program.get(f"/videos/{job['id']}").json()["status"] in ("completed", "failed"))
    done = program.get(f"/videos/{job['id']}").json()
    assert (done["status"], done["progress"], done.get("error")) == ("completed", 100, None)
    sent = program.get(f"/videos/{job['id']}/content")
    assert sent.headers["content-type"] == "video/mp4"
    with av.open(io.BytesIO(sent.content)) as file:
        assert len(list(file.decode(video=0))) == 9
    form = program.post("/videos", data={"prompt": "x", "model": str(model), "seconds": "0.3", "steps": "1"}, files={
        "input_reference": ("a.png", png(PILImage.new("RGB", (64, 64), "red")), "image/png")})  # fmt: skip
    assert form.status_code == 200 and form.json()["seconds"] == "0.3125"
    until(lambda: program.get(f"/videos/{form.json()['id']}").json()["status"] == "completed")
    assert program.delete(f"/videos/{job['id']}").json()["deleted"]
    assert program.get(f"/videos/{job['id']}/content").status_code == 404


def test_what_is_wrong_is_told_at_once(program: httpx.Client, model: Path) -> None:
    right = {"prompt": "x", "input_reference": picture(), "model": str(model)}
    wrong = {
        "There is no prompt": {"prompt": ""},
        "There is no picture to begin with": {"input_reference": None},
        "links and files are not fetched": {"input_reference": "https://example.com/a.png"},
        "seconds must be a number": {"seconds": "long"},
        "must be more than 0 and at most 20": {"seconds": 60},
        "is not a video model": {"model": str(model.parent)},
        "No video model is on this machine": {"model": None},
    }
    for sentence, change in wrong.items():
        answer = program.post("/videos", json=right | change)
        assert answer.status_code == 400 and sentence in answer.json()["error"]["message"], answer.text
    assert program.get("/videos").status_code == 405
