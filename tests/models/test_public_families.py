"""Public pairs: the right shapes, the right defaults, what an untuned painter can do, the guardrail, and what cannot paint is refused."""

from __future__ import annotations

import inspect
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit as longcat_edit
from PIL import Image as PILImage

from duogen.conversation import Conversation, Image
from duogen.engine import Engine
from duogen.events import Done, Failed, Notice
from duogen.hub.catalogue import own_defaults
from duogen.models import guardrail
from duogen.models.picture_marks import PictureRequest
from duogen.models.pipeline import About
from duogen.options import ImageOptions, LoadOptions, preset_values, reshape_size
from duogen.painters.base import PaintRequest
from duogen.painters.diffusers import _pipeline, check_paints
from duogen.painters.pipeline_run import PipelineRun
from tests.models.test_public import SAID, SIDE, options
from tests.support import public
from tests.support.tiny import END, script

MAKERS = {
    "qwen": public.qwen_edit, "qwen-image": public.qwen_image, "cosmos": public.cosmos, "klein": public.klein, "mllm": public.qwen3_mllm,
    "pix2pix": public.pix2pix, "longcat": public.longcat, "longcat-edit": public.longcat_edit, "z-image": public.z_image,
    "kontext": public.kontext, "schnell": public.schnell,
}  # fmt: skip
READ_BY_OTHERS = ("klein", "pix2pix", "z-image", "kontext", "schnell")  # their text encoders cannot talk
BLIND = "This painter cannot see pictures; the language model sees yours and describes it to the painter in words."


def noise(width: int, height: int, seed: int = 0) -> PILImage.Image:
    return PILImage.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def pictures_of(event) -> list[PILImage.Image]:
    assert isinstance(event, Done), event
    return [image.picture for image in event.conversation.path()[-1].images()]


@pytest.fixture(autouse=True)
def small_sources(monkeypatch) -> None:
    for name in ("VAE_IMAGE_SIZE", "CONDITION_IMAGE_SIZE"):  # the pipeline scales source pictures to a megapixel
        monkeypatch.setattr(f"diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus.{name}", SIDE * SIDE)
    monkeypatch.setattr("diffusers.pipelines.flux.pipeline_flux_kontext.PREFERRED_KONTEXT_RESOLUTIONS", [(SIDE, SIDE)])
    plain = longcat_edit.calculate_dimensions
    monkeypatch.setattr(longcat_edit, "calculate_dimensions", lambda area, ratio: plain(SIDE * SIDE * 4, ratio))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("families")
    return {name: write(home / name) for name, write in MAKERS.items()}


def opened(folders: dict[str, Path], name: str) -> Engine:
    mllm = folders["mllm"] if name in READ_BY_OTHERS else None
    return Engine.open(folders[name], mllm=mllm, load=LoadOptions(device="cpu", precision="fp32", picture_side=SIDE))


# Shapes.


@pytest.mark.parametrize(
    ("shape", "size"),
    [((384, 256), (1248, 832)), ((256, 384), (832, 1248)), ((1, 1), (1024, 1024)), ((4, 3), (1184, 896)), ((16, 9), (1376, 768))],
)
def test_a_shape_at_the_pairs_area(shape, size) -> None:
    assert reshape_size((1024, 1024), shape) == size
    assert reshape_size((1024, 1024), size) == size, "a guide keeps the size of its pictures"
    assert About(image_size=(1024, 1024)).picture_size(0, shape) == size
    assert max(About(image_size=(1024, 1024)).picture_size(512, shape)) == 512


@pytest.mark.parametrize("width", range(300, 3000, 170))
def test_a_size_once_found_stays(width) -> None:
    size = reshape_size((1280, 704), (width, 1000))
    assert reshape_size((1280, 704), size) == size and not any(side % 32 for side in size)


def test_a_strip_is_not_painted_as_one() -> None:
    width, height = reshape_size((1024, 1024), (9000, 10))
    assert width == 4 * height


@pytest.mark.parametrize("name", ["qwen", "klein", "pix2pix", "kontext", "longcat-edit"])
def test_an_edit_keeps_its_sources_aspect_and_a_guide_one_shape(folders, name, monkeypatch) -> None:
    engine = opened(folders, name)
    script(monkeypatch, engine.tokens, *SAID)
    *_, done = engine.answer(Conversation().say("user", "Change it", noise(96, 64)), options())
    assert [each.size for each in pictures_of(done)] == [reshape_size((SIDE, SIDE), (96, 64))] * 2 == [(80, 48)] * 2
    script(monkeypatch, engine.tokens, *SAID[1:4], END)
    *_, again = engine.answer(done.conversation.say("user", "Greener"), options())
    assert pictures_of(again)[0].size == (80, 48)


def test_a_masked_picture_is_changed_in_its_own_shape(folders, monkeypatch) -> None:
    engine, sizes = opened(folders, "klein"), []
    plain = type(engine.painter).paint
    monkeypatch.setattr(type(engine.painter), "paint", lambda self, frames, request: sizes.append(request) or plain(self, frames, request))
    before, mask = noise(96, 64), PILImage.new("L", (96, 64))
    mask.paste(255, (0, 0, 32, 32))
    script(monkeypatch, engine.tokens, *SAID[1:4], END)
    *_, done = engine.answer(Conversation().say("user", "Change it", Image(before, mask=mask)), options())
    after = np.asarray(pictures_of(done)[0])
    assert after.shape == (64, 96, 3) and sizes[0].size == (80, 48) and sizes[0].inpaint.size == (80, 48)
    assert (after[:, 33:] == np.asarray(before)[:, 33:]).all() and (after[:32, :32] != np.asarray(before)[:32, :32]).any()


@pytest.mark.parametrize(("aspect", "size"), [("1:1", (64, 64)), ("2:3", (48, 80)), ("16:9", (80, 48))])
def test_an_aspect_that_is_asked_for(folders, aspect, size, monkeypatch) -> None:
    engine = opened(folders, "klein")
    script(monkeypatch, engine.tokens, *SAID)
    *_, done = engine.answer(Conversation().say("user", "Draw", noise(96, 64)), options(aspect=aspect))
    assert [each.size for each in pictures_of(done)] == [size] * 2


def test_a_pair_of_one_size_refuses_another_aspect(folders, monkeypatch) -> None:
    engine = opened(folders, "cosmos")
    monkeypatch.setattr(type(engine.pair.about), "any_size", property(lambda self: False))
    script(monkeypatch, engine.tokens, *SAID[1:4], END)
    *_, failed = engine.answer(Conversation().say("user", "Draw"), options(aspect="3:2"))
    assert isinstance(failed, Failed) and failed.message.endswith("pixels only; set the aspect of pictures to auto.")


def test_an_aspect_on_the_command_line_and_in_requests() -> None:
    import argparse

    from duogen.options import add_flags, from_flags
    from ui.api.requests import RequestError, parse_options

    parser = argparse.ArgumentParser()
    add_flags(parser, ImageOptions)
    assert from_flags(parser.parse_args(["--aspect", "16:9"]), ImageOptions).shape == (16, 9)
    assert parse_options({"aspect": "2:3"}, {}).image.shape == (2, 3) and parse_options({}, {}).image.shape is None
    with pytest.raises(RequestError, match="There is no aspect '7:1'; choose one of auto, 1:1"):
        parse_options({"aspect": "7:1"}, {})


# What an untuned Cosmos can do.


def test_an_untuned_cosmos_paints_from_words_alone_and_says_so(folders, monkeypatch) -> None:
    engine, made = opened(folders, "cosmos"), []
    for brought in ([], [noise(64, 32)]):
        script(monkeypatch, engine.tokens, *SAID[1:4], END)
        events = list(engine.answer(Conversation().say("user", "Draw", *brought), options(guidance=3.0)))
        made.append(np.asarray(pictures_of(events[-1])[0]))
        told = [event.message for event in events if isinstance(event, Notice)]
        assert told == [BLIND] * len(brought)
    assert (made[0] == made[1]).all(), "earlier pictures are not seen"
    assert "The painter cannot see pictures" in engine.pair.tokenizer.decode(engine.memory.context.packed.ids)


def test_a_cosmos_tuned_by_stage_2_paints_the_next_frame(folders, tmp_path, monkeypatch) -> None:
    from duogen.models.adapters import AdapterSpec

    engine, made = opened(folders, "cosmos"), []
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "adapter_model.safetensors").touch()
    monkeypatch.setattr(engine, "_place_adapters", lambda adapters: None)
    for adapters in ((), (AdapterSpec(tmp_path),)):
        engine.set_adapters(adapters)
        assert engine.painter.follows == bool(adapters) == engine.painter.takes_pictures(ImageOptions())
        script(monkeypatch, engine.tokens, *SAID[1:4], END)
        *_, done = engine.answer(Conversation().say("user", "Draw", noise(64, 32)), options(guidance=3.0))
        made.append(np.asarray(pictures_of(done)[0]).astype(int))
    assert np.abs(made[0] - made[1]).max() > 4


def test_a_cosmos_that_films_keeps_the_last_frame_of_diffusers_own_video(folders, monkeypatch) -> None:
    from diffusers import Cosmos2_5_PredictBasePipeline

    engine, given = opened(folders, "cosmos"), []
    monkeypatch.setattr("duogen.painters.cosmos.FILM_FRAMES", 9)
    plain = Cosmos2_5_PredictBasePipeline.__call__

    def call(self, **named):
        made = plain(self, **named)
        given.append((named, made.frames[0]))
        return made

    call.__signature__ = inspect.signature(plain)
    monkeypatch.setattr(Cosmos2_5_PredictBasePipeline, "__call__", call)
    script(monkeypatch, engine.tokens, *SAID[1:4], END)
    asked = Conversation().say("user", "Go on", noise(64, 32))
    events = list(engine.answer(asked, options(guidance=3.0, world="on")))
    if sys.modules.get("torchvision") is None and isinstance(events[-1], Failed):
        assert events[-1].message == "Filming needs torchvision: pip install torchvision, or set the option World to off."
        monkeypatch.setattr("duogen.painters.cosmos.importlib.util.find_spec", lambda name: True)
        monkeypatch.setattr("diffusers.models.transformers.transformer_cosmos.transforms", resizer(), raising=False)
        script(monkeypatch, engine.tokens, *SAID[1:4], END)
        events = list(engine.answer(asked, options(guidance=3.0, world="on")))
    (named, frames), picture = given[0], pictures_of(events[-1])[0]
    assert len(frames) == 9 and named["num_latent_conditional_frames"] == 1 and named["guidance_scale"] == 3.0
    assert picture.tobytes() == frames[-1].tobytes() and not [event for event in events if isinstance(event, Notice)]


def resizer() -> types.SimpleNamespace:
    """As much of torchvision as the DiT asks for: a mask of zeros in another size."""
    resize = lambda mask, size, **_: mask.new_zeros(*mask.shape[:-2], *size)  # noqa: E731
    return types.SimpleNamespace(functional=types.SimpleNamespace(resize=resize), InterpolationMode=types.SimpleNamespace(NEAREST=0))


# Every family, with and without a picture.


@pytest.mark.parametrize("name", ["klein", "kontext", "longcat", "longcat-edit", "qwen", "qwen-image", "schnell", "z-image"])
def test_a_family_paints_with_and_without_a_picture(folders, name, monkeypatch) -> None:
    engine, called = opened(folders, name), []
    kind = type(engine.pair.pipe)
    plain = kind.__call__

    def call(self, *given, **named):
        called.append(named)
        return plain(self, *given, **named)

    call.__signature__ = inspect.signature(plain)
    monkeypatch.setattr(kind, "__call__", call)
    for brought in ([], [noise(64, 64)]):
        script(monkeypatch, engine.tokens, *SAID[1:4], END)
        events = list(engine.answer(Conversation().say("user", "Draw", *brought), options(guidance=2.0, picture_guidance=1.0)))
        assert [each.size for each in pictures_of(events[-1])] == [(SIDE, SIDE)] and np.asarray(pictures_of(events[-1])[0]).std() > 0
        sees = engine.painter.takes_pictures(ImageOptions())
        assert sees == (name in ("klein", "kontext", "longcat-edit", "qwen"))
        assert [event.message for event in events if isinstance(event, Notice)] == ([] if sees else [BLIND] * len(brought))
    assert ("image" in called[-1]) == sees and called[-1]["prompt"] == "a red house"


@pytest.mark.parametrize("name", ["longcat", "kontext", "schnell", "z-image", "qwen-image"])
def test_a_family_paints_what_diffusers_paints(folders, name, monkeypatch) -> None:
    engine = opened(folders, name)
    script(monkeypatch, engine.tokens, *SAID[1:4], END)
    *_, done = engine.answer(Conversation().say("user", "Draw"), options(guidance=2.0))
    image, pipe = done.conversation.path()[-1].images()[0], engine.pair.pipe
    said = {"prompt": "a red house", "num_inference_steps": 2, "width": SIDE, "height": SIDE}
    guided = {
        "longcat": {"guidance_scale": 2.0, "enable_prompt_rewrite": False}, "kontext": {"guidance_scale": 2.0, "max_area": SIDE**2},
        "schnell": {"true_cfg_scale": 2.0, "negative_prompt": " "}, "z-image": {"guidance_scale": 2.0},
        "qwen-image": {"true_cfg_scale": 2.0, "negative_prompt": " "},
    }[name]  # fmt: skip
    theirs = pipe(**said, **guided, generator=torch.Generator().manual_seed(image.seed)).images[0]
    assert image.picture.tobytes() == theirs.tobytes()


def test_a_pipeline_that_reports_no_steps_is_stopped_at_the_next(folders, monkeypatch) -> None:
    engine = opened(folders, "longcat")
    assert "callback_on_step_end" not in inspect.signature(type(engine.pair.pipe).__call__).parameters
    calls = []
    engine.pair.pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    frames = engine.memory.frames.empty()
    run = engine.painter.paint(frames, PaintRequest(PictureRequest("a house"), 0, ImageOptions(3, 1.0), 1))
    assert [step.step for step in run] == [3] and len(calls) == 3
    pipe = PipelineRun(engine.pair.pipe, engine.painter._call(engine.pair.pipe, PaintRequest(PictureRequest("a"), 0, ImageOptions(50), 1),
                       (SIDE, SIDE), []), engine.pair.pipe.transformer, lambda made: made.images[0])  # fmt: skip
    engine.pair.pipe.transformer.register_forward_hook(lambda *_: pipe.stopped.set())
    pipe.thread.start()
    pipe.stop()
    assert pipe.picture is None and len(calls) == 4


def test_parts_that_a_pipeline_needs_stay(monkeypatch, tmp_path) -> None:
    import diffusers

    opened_with: dict = {}

    class Needs(diffusers.StableUnCLIPImg2ImgPipeline):
        @classmethod
        def from_pretrained(cls, folder, **given):
            opened_with.update(given)
            raise ValueError("enough")

    for kind, none in ((Needs, []), (diffusers.StableDiffusionPipeline, ["feature_extractor", "image_encoder", "safety_checker"])):
        monkeypatch.setattr(kind, "from_pretrained", Needs.from_pretrained)
        named = ("feature_extractor", "image_encoder", "safety_checker")
        index = {"_class_name": "X"} | {name: ["transformers", "CLIPModel"] for name in named}
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        monkeypatch.setattr("duogen.painters.diffusers.pipeline_class", lambda folder, kind=kind: kind)
        opened_with.clear()
        with pytest.raises(ValueError, match="enough"):
            _pipeline(tmp_path, LoadOptions(device="cpu"), "cpu", None, (None, None))
        assert sorted(name for name, part in opened_with.items() if name in named and part is None) == none


# What a pipeline paints best with.


@pytest.mark.parametrize(
    ("kind", "name", "steps", "guidance"),
    [
        ("ZImagePipeline", "Z-Image-Turbo", 8, 0.0), ("ZImagePipeline", "Z-Image", 50, 4.0), ("FluxPipeline", "FLUX.1-schnell", 4, 0.0),
        ("FluxPipeline", "FLUX.1-dev", 28, 3.5), ("FluxKontextPipeline", "FLUX.1-Kontext-dev", 28, 2.5),
        ("StableDiffusionXLPipeline", "sdxl-turbo", 1, 0.0), ("StableDiffusion3Pipeline", "stable-diffusion-3.5-large-turbo", 4, 0.0),
        ("LongCatImageEditPipeline", "LongCat-Image-Edit-Turbo", 8, 1.0), ("Flux2KleinPipeline", "FLUX.2-klein-base-4B", 50, 4.0),
        ("SomethingElsePipeline", "anything-turbo", 28, 4.0),
    ],
)  # fmt: skip
def test_the_right_defaults_by_class_and_repository(kind, name, steps, guidance, tmp_path) -> None:
    snapshot = tmp_path / f"models--owner--{name}" / "snapshots" / "0123"
    for folder in (tmp_path / name, snapshot):
        folder.mkdir(parents=True)
        (folder / "model_index.json").write_text(json.dumps({"_class_name": kind}))
        found = own_defaults(folder)
        assert (found["steps"], found["guidance"]) == (steps, guidance)


def test_a_schnell_by_another_name_is_known_by_its_transformer(folders) -> None:
    engine = opened(folders, "schnell")
    assert (engine.about["steps"], engine.about["guidance"]) == (4, 0.0)
    assert preset_values("balanced", engine.about)["image", "guidance"] == 0.0


# The guardrail.


class SafetyChecker(torch.nn.Module):
    """`cosmos_guardrail.CosmosSafetyChecker` without its models: the same methods, signatures, returned values and habits."""

    def __init__(self, checkpoint_id: str = "nvidia/Cosmos-1.0-Guardrail") -> None:
        super().__init__()

    def check_text_safety(self, prompt: str) -> bool:
        return "bad" not in prompt

    def check_video_safety(self, frames: np.ndarray) -> np.ndarray:
        for frame in frames:
            frame[:2, :2] = 0  # faces are blurred in place
        return np.array(list(frames))

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        pass


@pytest.fixture
def package(monkeypatch):
    """A module in the place of the package, whose checker can be exchanged."""
    module = types.ModuleType("cosmos_guardrail")
    module.CosmosSafetyChecker = SafetyChecker
    monkeypatch.setitem(sys.modules, "cosmos_guardrail", module)
    monkeypatch.setattr(guardrail, "is_installed", lambda: True)
    return module


def test_the_double_is_like_the_real_guardrail() -> None:
    real = pytest.importorskip("cosmos_guardrail").CosmosSafetyChecker
    for name in ("__init__", "check_text_safety", "check_video_safety", "to"):
        mine, its = (inspect.signature(getattr(kind, name)) for kind in (SafetyChecker, real))
        assert [*mine.parameters] == [*its.parameters], name
    assert real.to.__annotations__["return"] is None


def test_pictures_come_through_the_real_guardrails_interface(package, folders, monkeypatch) -> None:
    engine = opened(folders, "cosmos")
    engine.guard = guardrail.open_guardrail("cpu")
    script(monkeypatch, engine.tokens, *SAID)
    *_, done = engine.answer(Conversation().say("user", "Draw"), options())
    assert [np.asarray(each)[:2, :2].max() for each in pictures_of(done)] == [0, 0]
    script(monkeypatch, engine.tokens, "<picture>", "a bad thing", "</picture>", END)
    *_, failed = engine.answer(Conversation().say("user", "Draw"), options())
    assert isinstance(failed, Failed) and "refuses this picture's words" in failed.message


@pytest.mark.parametrize("error", [OSError("No network."), ImportError("libGL.so.1"), KeyError("blocklist"), AssertionError()])
def test_a_guardrail_that_does_not_open_is_a_sentence(package, error) -> None:
    class Broken(SafetyChecker):
        def __init__(self) -> None:
            raise error

    package.CosmosSafetyChecker = Broken
    with pytest.raises(ValueError, match=r"^The guardrail that this pair's licence asks for cannot be opened \(.+\); it fetches"):
        guardrail.open_guardrail("cpu")


# What cannot paint, and what paints without saying how far it is.


@pytest.mark.parametrize(
    ("name", "makes"),
    [("HunyuanVideoPipeline", "videos"), ("CogVideoXImageToVideoPipeline", "videos"), ("StableVideoDiffusionPipeline", "videos"),
     ("StableAudioPipeline", "sound")],
)  # fmt: skip
def test_a_pipeline_that_makes_no_pictures_is_refused_before_anything_is_loaded(name, makes, folders, tmp_path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name, "transformer": ["diffusers", "X"]}))
    with pytest.raises(ValueError, match=f"^{name} in .* makes {makes}, not pictures; choose a pipeline that paints pictures"):
        Engine.open(tmp_path, mllm=folders["mllm"], load=LoadOptions(device="cpu"))


@pytest.mark.parametrize("name", ["LTXPipeline", "WanPipeline", "Cosmos2VideoToWorldPipeline"])
def test_a_pipeline_that_sets_pictures_in_motion_says_what_it_is_for(name, folders, tmp_path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name, "transformer": ["diffusers", "X"]}))
    match = f"^{name} in .* sets pictures in motion and paints none; .* python -m duogen animate PICTURE --model"
    with pytest.raises(ValueError, match=match):
        Engine.open(tmp_path, mllm=folders["mllm"], load=LoadOptions(device="cpu"))


@pytest.mark.parametrize(
    "name",
    ["FluxPipeline", "FluxKontextPipeline", "ZImagePipeline", "QwenImagePipeline", "LongCatImagePipeline", "LongCatImageEditPipeline",
     "StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "PixArtSigmaPipeline", "Kandinsky5T2IPipeline",
     "HunyuanImagePipeline", "SanaPipeline", "Lumina2Pipeline", "ChromaPipeline", "Cosmos2TextToImagePipeline", "AmusedPipeline"],
)  # fmt: skip
def test_pipelines_that_paint_are_not_refused(name, tmp_path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    check_paints(tmp_path)
