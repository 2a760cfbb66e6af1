"""Video models: tiny checkpoints in their real layouts, beside diffusers' own pipelines; files with settings; what is refused, and how."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, Cosmos2VideoToWorldPipeline, WanImageToVideoPipeline
from PIL import Image as PILImage

from duogen.cli.main import main
from duogen.conversation import Conversation, Image, Motion, load_conversation, save_conversation
from duogen.engine import Engine
from duogen.hub.catalogue import video_models
from duogen.hub.memory_plan import GB, Machine
from duogen.hub.motion import animates_only, plan_motion
from duogen.library.conversations import ConversationStore
from duogen.library.motion_file import read_motion, replace_motion_info
from duogen.library.pictures import Gallery, PictureQuery
from duogen.models import guardrail
from duogen.models.guardrail import CheckedBefore, Guardrail
from duogen.motion import Animator, MotionDone, MotionNotice, MotionRequest, MotionStep, open_animator
from duogen.options import LoadOptions
from duogen.painters.motion import Clip, find_family, takes_last
from duogen.provenance import Origin
from tests.support import public, video

LOAD = LoadOptions(device="cpu", precision="fp32", painter_precision="fp32", picture_side=64)
MAKERS = {
    "wan": video.wan, "wan-5b": video.wan_first_only, "ltx": video.ltx, "ltx-2": video.ltx2, "cosmos2": video.cosmos2,
    "cosmos2.5": public.cosmos,
}  # fmt: skip
TAKE_BOTH = {"wan", "ltx", "ltx-2"}


def noise(seed: int, size: tuple[int, int] = (64, 64)) -> PILImage.Image:
    small = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return PILImage.fromarray(small).resize(size, PILImage.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("videos")
    return {name: write(home / name) for name, write in MAKERS.items()}


def ask(last: bool = False, **more) -> MotionRequest:
    given = {"seconds": 0.4, "steps": 2, "seed": 3, "origin": Origin.PAINTED} | more
    return MotionRequest(noise(1), "It moves", noise(2) if last else None, **given)


def load_of(name: str) -> LoadOptions:
    return LoadOptions(**vars(LOAD) | {"picture_side": 128}) if name == "ltx-2" else LOAD


def make(folders: dict[str, Path], name: str, request: MotionRequest) -> list:
    return list(open_animator(folders[name], request, load_of(name)).animate(request))


def frames_of(data: bytes) -> list[PILImage.Image]:
    with av.open(io.BytesIO(data)) as file:
        return [frame.to_image() for frame in file.decode(video=0)]


@pytest.mark.parametrize("name", MAKERS)
def test_every_family_gives_steps_and_a_file_that_says_how_it_was_made(folders, name: str) -> None:
    request = ask(name in TAKE_BOTH)
    assert takes_last(folders[name]) == (name in TAKE_BOTH)
    *events, done = [each for each in make(folders, name, request) if not isinstance(each, MotionNotice)]
    assert events == [MotionStep(1, 2), MotionStep(2, 2)] and isinstance(done, MotionDone)
    shown = frames_of(done.data)
    assert len(shown) == 9 and not any(side % 16 for side in shown[0].size)
    settings = done.about.options["motion"]
    assert (settings["frames"], settings["steps"], settings["ends_with_a_picture"]) == (9, 2, name in TAKE_BOTH)
    assert (done.about.seed, done.about.words, done.about.origin) == (3, "It moves", "trainedAlgorithmicMedia")


@pytest.fixture
def decoded(monkeypatch) -> list[torch.Tensor]:
    """The latents of every video that is decoded: tiny autoencoders make nearly the same frames of all of them."""
    seen, plain = [], AutoencoderKLWan.decode
    monkeypatch.setattr(AutoencoderKLWan, "decode", lambda self, latents, **how: seen.append(latents) or plain(self, latents, **how))
    return seen


@pytest.mark.parametrize("name", ["wan", "wan-5b"])
def test_wan_makes_what_its_own_pipeline_makes(folders, name: str, decoded) -> None:
    request = ask(name in TAKE_BOTH)
    animator = open_animator(folders[name], request, LOAD)
    own = WanImageToVideoPipeline.from_pretrained(folders[name])
    for last in (request.last, noise(9) if request.last else None):
        *_, frames = animator.model.animate(Clip(request.first, last, "It moves", 9, 16), 2, 3.5, 3)
        made = own(
            image=request.first, prompt="It moves", negative_prompt=animator.model.more["negative_prompt"], width=64, height=64,
            num_frames=9, num_inference_steps=2, guidance_scale=3.5, generator=torch.Generator().manual_seed(3), output_type="pil",
            **({"last_image": last} if last else {}),
        ).frames[0]  # fmt: skip
        assert [np.asarray(frame).tolist() for frame in frames] == [np.asarray(frame.convert("RGB")).tolist() for frame in made]
    ours, its_own = decoded[::2], decoded[1::2]
    assert all(map(torch.equal, ours, its_own)) and torch.equal(*ours) is (request.last is None), "the second end does not count"


def test_cosmos_needs_no_torchvision_and_makes_the_same_with_its_own_mask(folders, monkeypatch, decoded) -> None:
    """The slow way: the mask of zeros resized at every step, as its DiT does where torchvision is."""
    from diffusers.models.transformers import transformer_cosmos

    class Transforms:
        InterpolationMode = type("Mode", (), {"NEAREST": "nearest"})

        class functional:  # noqa: N801
            resize = staticmethod(lambda mask, size, interpolation: torch.nn.functional.interpolate(mask, size=size))

    request = ask()
    animator = open_animator(folders["cosmos2"], request, LOAD)
    list(animator.model.animate(Clip(request.first, None, "It moves", 9, 16), 2, 7.0, 3))
    monkeypatch.setattr(transformer_cosmos, "transforms", Transforms, raising=False)
    parts = animator.model.pair.pipe.components
    plain = type(parts["transformer"]).from_pretrained(folders["cosmos2"] / "transformer")
    own = Cosmos2VideoToWorldPipeline(**parts | {"transformer": plain, "safety_checker": CheckedBefore()})
    own(
        image=request.first, prompt="It moves", width=64, height=64, num_frames=9, num_inference_steps=2, guidance_scale=7.0, fps=16,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    assert torch.equal(*decoded) and decoded[0].std() > 0.1


def test_a_stop_ends_within_a_step_and_gives_nothing(folders) -> None:
    request, stop, calls = ask(steps=40), threading.Event(), []
    animator = open_animator(folders["wan"], request, LOAD)

    def count(*given) -> None:
        calls.append(1)
        if len(calls) > 4:
            stop.set()

    animator.model.pair.pipe.transformer.register_forward_pre_hook(count)
    events = list(animator.animate(request, stop))
    assert all(isinstance(each, MotionStep) for each in events) and len(calls) <= 6, "it went on after the step that was under way"


def test_a_model_of_one_end_refuses_two_before_it_is_opened(folders, monkeypatch) -> None:
    monkeypatch.setattr(Animator, "open", lambda *given: pytest.fail("it was opened"))
    for name in set(MAKERS) - TAKE_BOTH:
        with pytest.raises(ValueError, match="cannot end with a second picture"):
            open_animator(folders[name], ask(last=True), LOAD)


def test_the_guardrail_reads_the_words_and_looks_at_the_frames(folders, monkeypatch) -> None:
    class Checker:
        to = staticmethod(lambda device: None)
        check_text_safety = staticmethod(lambda words: "bad" not in words)
        check_video_safety = staticmethod(lambda frames: np.zeros_like(frames))

    assert any(isinstance(each, MotionNotice) and "cosmos_guardrail" in each.message for each in make(folders, "cosmos2", ask()))
    monkeypatch.setattr(guardrail, "open_guardrail", lambda device: Guardrail(Checker(), device))
    *_, done = make(folders, "cosmos2", ask())
    assert max(each.getextrema()[0][1] for each in frames_of(done.data)) < 20, "the frames are not those that the guardrail gave"
    request = MotionRequest(noise(1), "bad things", seconds=0.4, steps=2)
    with pytest.raises(ValueError, match="refuses this picture's words"):
        list(open_animator(folders["cosmos2"], request, LOAD).animate(request))


@pytest.mark.parametrize("name", ["wan", "wan-5b", "ltx", "ltx-2", "cosmos2"])
def test_nobody_paints_stills_with_a_video_model(folders, name: str, tmp_path: Path) -> None:
    mllm = public.qwen2_mllm(tmp_path / "mllm")
    with pytest.raises(ValueError, match="sets pictures in motion and paints none; animate a step .* python -m duogen animate PICTURE"):
        Engine.open(folders[name], mllm=mllm, load=LOAD)
    assert animates_only(str(folders[name])) and not animates_only(str(folders["cosmos2.5"]))


def test_what_starts_from_words_alone_or_is_no_video_model_is_told(folders, tmp_path: Path) -> None:
    words = tmp_path / "words"
    words.mkdir()
    (words / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    with pytest.raises(ValueError, match="starts from words alone"):
        find_family(words)
    (words / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(ValueError, match="no video model that starts from a picture"):
        find_family(words)
    with pytest.raises(ValueError, match="paints pictures and cannot set them in motion"):
        plan_motion("duogen-sketch", LOAD)
    for wrong in ({"seconds": 0.0}, {"seconds": 21.0}):
        with pytest.raises(ValueError, match="seconds of an animation"):
            plan_motion(folders["wan"], LOAD, **wrong)
    with pytest.raises(ValueError, match="Say what happens"):
        MotionRequest(noise(1), " ")


def test_every_video_model_of_the_catalogue_has_a_plan() -> None:
    for id in video_models():
        large = plan_motion(id, LoadOptions(), machine=Machine.with_gpu(80, 200 * GB, 8))
        assert large.plan.fits and large.frames in (81, 93, 121) and "GB on the GPU" in " ".join(large.sentences())
        longer = plan_motion(id, LoadOptions(offload="none", painter_precision="bf16"), 15, machine=Machine(900 * GB, 900 * GB))
        shorter = plan_motion(id, LoadOptions(offload="none", painter_precision="bf16"), 2, machine=Machine(900 * GB, 900 * GB))
        assert longer.plan.gpu > shorter.plan.gpu, "frames cost memory"
        assert plan_motion(id, LoadOptions(), 2, machine=Machine(0, 900 * GB, 8)).plan.seconds > 60


def test_a_file_keeps_its_settings_where_they_change(folders) -> None:
    *_, done = make(folders, "wan", ask())
    assert b'DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"' in done.data
    with av.open(io.BytesIO(done.data)) as file:
        assert "Seed: 3" in file.metadata["comment"] and file.metadata["title"] == "It moves"
    changed = replace_motion_info(done.data, done.about.__class__(**vars(done.about) | {"favourite": True}))
    assert len(frames_of(changed)) == 9 and changed.count(b"ends_with_a_picture") == 1


def test_the_library_shows_finds_marks_deletes_and_restores(folders, tmp_path: Path) -> None:
    *_, done = make(folders, "wan", ask())
    gallery = Gallery(tmp_path)
    entry = gallery.add_motion(done.data)
    assert entry.moves and entry.about == done.about and gallery.add_motion(done.data).id == entry.id
    assert gallery.set_favourite(entry.id, True).about.favourite and read_motion(entry.file).about.favourite
    assert gallery.thumbnail(entry).exists() and gallery.find(PictureQuery("moves"))[1] == 1
    gallery.delete(entry.id)
    assert gallery.find(PictureQuery())[1] == 0 and gallery.freeable().deleted == 1
    assert gallery.restore(entry.id).moves and Gallery(tmp_path).find(PictureQuery())[1] == 1
    with pytest.raises(ValueError, match="cannot be read|no longer here"):
        gallery.add_motion(b"\0\0\0\x08ftyp")


def test_a_conversation_keeps_carries_and_loses_an_animation(tmp_path: Path) -> None:
    data = b"\0\0\0\x18ftypisom" + bytes(40)
    said = Conversation().say("user", "x").say("assistant", Image(noise(1), seed=1, motion=Motion(data, "It moves")))
    store = ConversationStore(tmp_path / "talks")
    kept = store.save(said)
    (image,) = store.open(kept.id).path()[-1].images()
    assert image.motion.words == "It moves" and image.motion.source.read_bytes() == data
    (tmp_path / "a.zip").write_bytes(store.pack(kept.id))
    brought = store.unpack(tmp_path / "a.zip").path()[-1].images()[0]
    assert brought.motion.source.read_bytes() == data and brought.motion.source != image.motion.source
    copied = store.copy_until(kept.id, kept.head).path()[-1].images()[0]
    assert copied.motion.source.parent.parent.name not in (kept.id,) and copied.motion.source.read_bytes() == data
    store.change(kept.id, lambda now: now.with_changed(now.turns[now.head].with_motion(0, None)))
    assert store.open(kept.id).path()[-1].images()[0].motion is None
    image.motion.source.unlink()
    save_conversation(said, tmp_path / "one")
    for file in (tmp_path / "one" / "images").glob("*.mp4"):
        file.unlink()
    assert load_conversation(tmp_path / "one").path()[-1].images()[0].motion is None, "a lost file costs itself alone"


def test_the_command_writes_a_file_or_nothing(folders, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("a", "b"):
        noise(ord(name)).save(tmp_path / f"{name}.png")
    a, b, out = (str(tmp_path / name) for name in ("a.png", "b.png", "x.mp4"))
    flags = ["--seconds", "0.4", "--steps", "2", "--device", "cpu", "--painter-precision", "fp32", "--picture-side", "64", "--seed", "5"]
    assert main(["animate", a, "--to", b, "--model", str(folders["wan"]), "--prompt", "It turns", "--out", out, *flags]) == 0
    about = read_motion(Path(out)).about
    assert capsys.readouterr().out.strip() == out and (about.seed, about.words) == (5, "It turns")
    assert about.origin == "compositeWithTrainedAlgorithmicMedia", "the pictures were brought"
    refused = {
        ("--model", str(folders["wan"])): "Say what happens",
        ("--prompt", "x", "--model", str(folders["wan-5b"]), "--to", b): "cannot end with a second picture",
        ("--prompt", "x"): "No video model is on this machine: Wan2.2-TI2V-5B",
        ("--prompt", "x", "--out", str(tmp_path / "y.gif")): "does not end in .mp4",
        ("--prompt", "x", "--model", str(tmp_path)): "is not a video model",
    }
    before = sorted(tmp_path.iterdir())
    for words, sentence in refused.items():
        assert main(["animate", a, *words, *flags]) == 2
        said = capsys.readouterr().err
        assert sentence in said and "Traceback" not in said
    assert sorted(tmp_path.iterdir()) == before
    assert main(["plan", "--pair", "wan2.2-ti2v-5b", "--vram", "24", "--ram", "64"]) == 0
    assert "121 frames" in capsys.readouterr().out
