"""Whole replies from tiny checkpoints of the public pairs' real classes, in their hub layouts, through the one engine."""

from __future__ import annotations

import math
import re
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from PIL import Image as PILImage
from safetensors.torch import save_file

from duogen.conversation import Conversation, Image, Text
from duogen.engine import Engine
from duogen.events import Done, Failed, ImageDone, ImageStarted, ImageStep, Notice, TextDelta, Thought
from duogen.hub.catalogue import entries
from duogen.hub.memory_plan import HOST_SPARE, Machine
from duogen.models.mllm import Context
from duogen.models.picture_marks import PictureRequest
from duogen.models.pipeline import About
from duogen.models.placement import DeviceSwapper, free, offload_with_hooks, swap_devices
from duogen.models.sequence import Packed
from duogen.options import ImageOptions, LoadOptions, Options, TextOptions, preset_values
from duogen.provenance import Origin
from tests.support import public
from tests.support.tiny import END, script
from tests.support.waiting import until

SIDE = 64
REPOSITORIES = {  # of the catalogue
    "cosmos-predict2.5-2b": [("nvidia/Cosmos-Predict2.5-2B", "diffusers/base/post-trained", public.cosmos)],
    "qwen-image-edit-2511": [("Qwen/Qwen-Image-Edit-2511", "main", public.qwen_edit)],
    "flux2-klein-4b": [
        ("black-forest-labs/FLUX.2-klein-4B", "main", public.klein),
        ("Qwen/Qwen3-VL-4B-Instruct", "main", public.qwen3_mllm),
    ],
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """A hub cache with all public pairs in it."""
    home = tmp_path_factory.mktemp("hub")
    for repositories in REPOSITORIES.values():
        for repo, revision, write in repositories:
            public.in_cache(home, repo, revision, write)
    return home


@pytest.fixture(autouse=True)
def only_this_cache(cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    for name in ("VAE_IMAGE_SIZE", "CONDITION_IMAGE_SIZE"):  # the pipeline scales source pictures to a megapixel
        monkeypatch.setattr(f"diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus.{name}", SIDE * SIDE)


def opened(name: str, precision: str = "fp32", **wishes) -> Engine:
    """A pair by its name in the catalogue, small."""
    load = LoadOptions(device="cpu", precision=precision, painter_precision=precision, picture_side=SIDE, **wishes)
    return Engine.open(name, load=load)


@pytest.fixture(scope="module")
def klein(cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        return opened("flux2-klein-4b")


@pytest.fixture
def own_klein(cache, monkeypatch):
    """For a test that leaves its engine otherwise than it was."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return opened("flux2-klein-4b")


def options(**image) -> Options:
    return Options(1, TextOptions(temperature=1.0, top_p=1.0), ImageOptions(**{"steps": 2, "preview_every": 0} | image))


def picture(seed: int = 0) -> PILImage.Image:
    return PILImage.fromarray(np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))


SAID = ("Step 1.", "<picture>", "a red house", "</picture>", " Step 2.", '<picture from="2">a blue door', END)


WAYS = [("bf16", "none"), ("nf4", "none"), ("auto", "none"), ("nf4", "model"), ("bf16", "group"), ("int8", "model")]


@pytest.mark.parametrize(("precision", "offload"), WAYS)
@pytest.mark.parametrize("name", REPOSITORIES)
def test_a_whole_reply(name, precision, offload, monkeypatch) -> None:
    engine = opened(name, precision, offload=offload)
    script(monkeypatch, engine.tokens, *SAID)
    asked = Conversation().say("user", "Like this:", picture())
    events = list(engine.answer(asked, options(guidance=2.0 if name.startswith("cosmos") else 1.0)))
    assert isinstance(events[-1], Done), events[-1]
    kinds = [type(event) for event in events if not isinstance(event, TextDelta)]
    blind = [Notice] if name.startswith("cosmos") else []  # an untuned one paints from words alone, and says so
    assert kinds == [*blind, *[ImageStarted, ImageStep, ImageStep, ImageDone] * 2, Done]
    turn = events[-1].conversation.path()[-1]
    said = [part.text if isinstance(part, Text) else part.alt for part in turn.parts]
    assert said == ["Step 1.", "a red house", " Step 2.", "a blue door"]
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "Step 1. Step 2."
    for image in turn.images():
        assert max(image.picture.size) == SIDE and np.asarray(image.picture).std() > 0
        assert image.origin is (Origin.PAINTED if blind else Origin.CHANGED)
    script(monkeypatch, engine.tokens, "Well.", END)
    again = list(engine.answer(events[-1].conversation.say("user", "And now?"), options()))[-1]
    assert again.stats.encoded_tokens < again.stats.prompt_tokens / 4, "the second turn reads what is new only"


@pytest.mark.parametrize("name", REPOSITORIES)
def test_pictures_of_another_size_and_closer_to_those_before(name, monkeypatch) -> None:
    engine, asked = opened(name), Conversation().say("user", "Like this:", picture())
    for side, guidance in ((2 * SIDE, 1.0), (0, 2.0)):
        script(monkeypatch, engine.tokens, *SAID)
        done = list(engine.answer(asked, options(side=side, picture_guidance=guidance)))[-1]
        assert [max(image.picture.size) for image in done.conversation.path()[-1].images()] == [side or SIDE] * 2
        asked = done.conversation.say("user", "Again.")


def test_the_same_seed_paints_the_same_picture(klein, monkeypatch) -> None:
    made = []
    for _ in range(2):
        script(monkeypatch, klein.tokens, *SAID)
        done = list(klein.answer(Conversation().say("user", "Draw"), options()))[-1]
        made.append([image.picture.tobytes() for image in done.conversation.path()[-1].images()])
    assert made[0] == made[1] and made[0][0] != made[0][1]


def test_what_was_named_comes_first_then_the_latest(klein) -> None:
    frames = klein.memory.frames.empty()
    for seed in range(6):
        klein.painter.remember(frames, picture(seed), None, 0)
    order = [frames.past.index(each) for each in klein.painter.sources(frames, PictureRequest("x", (2, 9, 1)))]
    assert order == [1, 0, 5, 4]
    assert klein.painter.sources(frames, PictureRequest("x"), picture(7))[1:] == frames.past[:2:-1]


def test_outside_a_mask_nothing_changes(klein, monkeypatch) -> None:
    mask = PILImage.new("L", (SIDE, SIDE))
    mask.paste(255, (0, 0, 20, 20))
    script(monkeypatch, klein.tokens, *SAID[1:4], END)
    done = list(klein.answer(Conversation().say("user", "Change it", Image(picture(), mask=mask)), options()))[-1]
    before, after = np.asarray(picture()), np.asarray(done.conversation.path()[-1].images()[0].picture)
    assert (before[20:] == after[20:]).all() and (before[:20, :20] != after[:20, :20]).any()


def test_stop_ends_a_picture_and_frees_the_thread(klein, monkeypatch) -> None:
    script(monkeypatch, klein.tokens, *SAID)
    stop, seen = threading.Event(), []
    for event in klein.answer(Conversation().say("user", "Draw"), options(steps=9), stop):
        seen.append(event)
        if isinstance(event, ImageStep) and event.step == 2:
            stop.set()
    assert isinstance(seen[-1], Done) and seen[-1].stats.stopped == "user" and seen[-2].step == 2
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "pipeline"])


def test_a_failing_pipeline_keeps_what_is_finished(klein, monkeypatch) -> None:
    script(monkeypatch, klein.tokens, *SAID)
    plain, calls = klein.pair.pipe.encode_prompt, []

    def encode_prompt(**named):
        calls.append(named)
        if len(calls) == 2:
            raise RuntimeError("broken")
        return plain(**named)

    monkeypatch.setattr(klein.pair.pipe, "encode_prompt", encode_prompt)
    failed = list(klein.answer(Conversation().say("user", "Draw"), options()))[-1]
    assert isinstance(failed, Failed) and "broken" in failed.message
    assert len(failed.conversation.path()[-1].images()) == 1


def test_out_of_memory_steps_down_once_and_goes_on(own_klein, monkeypatch) -> None:
    plain, calls = type(own_klein.painter).paint, []

    def paint(self, *given):
        calls.append(given)
        if len(calls) in (2, 4, 5):
            raise torch.OutOfMemoryError("no memory")
        yield from plain(self, *given)

    monkeypatch.setattr(type(own_klein.painter), "paint", paint)
    monkeypatch.setattr(own_klein.pair.pipe.vae, "use_tiling", False)
    script(monkeypatch, own_klein.tokens, *SAID)
    events = list(own_klein.answer(Conversation().say("user", "Draw"), options()))
    assert isinstance(events[-1], Done) and len(events[-1].conversation.path()[-1].images()) == 2
    told = [event.message for event in events if isinstance(event, Notice)]
    assert told == ["Memory ran out, so pictures are made in tiles from now on."]
    assert own_klein.pair.pipe.vae.use_tiling
    script(monkeypatch, own_klein.tokens, *SAID)
    failed = list(own_klein.answer(Conversation().say("user", "Draw"), options()))[-1]
    assert isinstance(failed, Failed) and "Memory ran out" in failed.message


@pytest.mark.parametrize("name", ["cosmos-predict2.5-2b", "flux2-klein-4b"])
def test_out_of_memory_in_a_step_keeps_nothing(name, monkeypatch) -> None:
    """What the failed step held is gone before the picture is begun again: the next try needs all of the GPU."""
    engine, held, gone = opened(name), [], []
    parts = getattr(engine.pair, "pipe", engine.pair)

    def full(module, given, named) -> None:
        held.append([weakref.ref(each) for each in [*given, *named.values()] if isinstance(each, torch.Tensor)])
        if len(held) == 2:
            raise torch.OutOfMemoryError("no memory")

    parts.transformer.transformer_blocks[0].ff.register_forward_pre_hook(full, with_kwargs=True)
    plain = free
    monkeypatch.setattr("duogen.engine.free", lambda: gone.append((plain(), [each() for each in held[1] if each() is not None])))
    parts.vae.use_tiling = False
    script(monkeypatch, engine.tokens, *SAID[1:4], END)
    events = list(engine.answer(Conversation().say("user", "Draw"), options()))
    assert isinstance(events[-1], Done) and parts.vae.use_tiling and [type(event) for event in events].count(Notice) == 1
    assert held[1] and gone == [(None, [])]


def test_step_by_step_down_to_smaller_pictures(monkeypatch) -> None:
    """Tiles, then smaller again and again, as long as a picture is of use."""
    engine = opened("cosmos-predict2.5-2b")
    engine.pair.about = engine.painter.about = replace(engine.pair.about, image_size=(448, 256))
    monkeypatch.setattr(engine.painter, "paint", lambda *given: (_ for _ in ()).throw(torch.OutOfMemoryError("no memory")))
    engine.pair.vae.use_tiling, told = False, []
    for _ in range(4):
        script(monkeypatch, engine.tokens, *SAID[1:4], END)
        *_, notice, failed = engine.answer(Conversation().say("user", "Draw"), options())
        assert isinstance(failed, Failed) and "Memory ran out" in failed.message and not engine.memory.frames.past
        told.append(notice.message if isinstance(notice, Notice) else "")
    assert "in tiles" in told[0] and "336 x 192 pixels" in told[1] and "256 x 144 pixels" in told[2] and not told[3]
    assert engine.about["image_size"] == (256, 144) and engine.costs is None


def test_a_marked_picture_that_became_smaller_is_remembered_as_small(monkeypatch) -> None:
    engine, sizes = opened("cosmos-predict2.5-2b"), []
    engine.pair.about = engine.painter.about = replace(engine.pair.about, image_size=(256, 256))
    monkeypatch.setattr("duogen.engine.SMALLEST_SIDE", 64)
    engine.pair.vae.use_tiling, plain = True, engine.painter.paint  # there are tiles already, so the next step is a smaller picture

    def paint(frames, request):
        sizes.append(engine.pair.about.image_size)
        if len(sizes) == 1:
            raise torch.OutOfMemoryError("no memory")
        yield from plain(frames, request)

    monkeypatch.setattr(engine.painter, "paint", paint)
    script(monkeypatch, engine.tokens, *SAID[1:4], END)
    mask = PILImage.new("L", (256, 256))
    mask.paste(255, (0, 0, 128, 128))
    brought = Image(PILImage.new("RGB", (256, 256), "red"), mask=mask)
    events = list(engine.answer(Conversation().say("user", "Draw", brought), options(side=256)))
    assert isinstance(events[-1], Done), events[-1]
    width, height = sizes[-1]
    assert width < 256 and tuple(engine.memory.frames.past[-1].shape[-2:]) == (height // 8, width // 8)


def test_out_of_memory_makes_parts_take_turns_on_a_card() -> None:
    moves: list = []

    class Part(SimpleNamespace):
        device = torch.device("cuda")

        def to(self, where: str) -> None:
            moves.append((self.name, where))
            self.device = torch.device(where)

    mllm, painter = Part(name="mllm"), Part(name="dit")
    pair = SimpleNamespace(text_encoder=mllm, swapper=DeviceSwapper(mllm, [painter], "cuda:0"))
    assert swap_devices(pair) and moves == [("mllm", "cpu")] and not swap_devices(pair)
    stock = SimpleNamespace(text_encoder=mllm, swapper=DeviceSwapper(mllm, [], "cuda"), pipe=SimpleNamespace())
    stock.pipe.enable_model_cpu_offload = lambda device: moves.append(("pipe", device))
    assert swap_devices(stock) and moves[1:] == [("pipe", "cuda")] and stock.swapper.rest == "cpu"
    assert not swap_devices(SimpleNamespace(swapper=DeviceSwapper(mllm, [], "cpu")))


def test_a_picture_painted_anew_gets_words_of_its_own(klein, monkeypatch) -> None:
    script(monkeypatch, klein.tokens, "a green", " boat", "</picture>")
    before = Conversation().say("user", "Draw").say("assistant", "A boat.")
    *_, done = klein.stream_image(before, options())
    assert done.image.alt == "a green boat"


def test_an_untuned_answer_read_again_shows_how_it_was_asked_for(klein) -> None:
    said = Conversation().say("user", "Draw").say("assistant", "Here:", Image(picture(), alt="a boat"))
    packed = klein.tokens.pack(said.path())
    assert "Here:<picture>a boat</picture><|vision_start|>" in klein.pair.tokenizer.decode(packed.ids)


def test_qwen3_vl_reads_as_its_own_forward(klein) -> None:
    """DeepStack features and interleaved positions, with and without the cache."""
    packed = Packed()
    packed.add(klein.tokens.text("Look: "), False)
    klein.tokens.add_image(packed, Image(picture(3)), False)
    packed.add(klein.tokens.text("a house"), False)
    pixels, grids = klein.tokens.pixels([slot.image for slot in packed.slots])
    ids = torch.tensor([packed.ids])
    model = klein.mllm.model
    kinds = (ids == model.config.image_token_id).int()
    with torch.no_grad():
        plain = model(input_ids=ids, pixel_values=pixels, image_grid_thw=grids, mm_token_type_ids=kinds).logits[0, -1]
    context = Context()
    klein.mllm.prefill(context, packed.between(0, packed.slots[0].end))
    klein.mllm.prefill(context, packed)
    said = [index for index in range(len(plain)) if index not in klein.mllm.unsaid]
    assert torch.allclose(context.logits[said], plain[said].float(), atol=1e-4)


def test_the_words_of_a_picture_do_not_count_and_a_cut_answer_keeps_its_words(klein, monkeypatch) -> None:
    script(monkeypatch, klein.tokens, "ab", "<picture>", "a red house in a wide green field", "</picture>", "cd `efgh", END)
    most = len(klein.tokens.text("ab")) + len(klein.tokens.text("cd `e"))
    cut = list(klein.answer(Conversation().say("user", "Draw."), replace(options(), text=TextOptions(1.0, 1.0, most))))[-1]
    assert (cut.stats.stopped, cut.stats.images) == ("max_tokens", 1) and cut.stats.text_tokens > most
    assert [part.text for part in cut.conversation.path()[-1].parts if isinstance(part, Text)] == ["ab", "cd `e"]


def test_an_answer_about_marks_is_an_answer_in_words(klein, monkeypatch) -> None:
    script(monkeypatch, klein.tokens, "<think>hm</think>", "Use `<picture>`:\n```\n<picture>", END)
    *events, done = klein.answer(Conversation().say("user", "How?"), options())
    assert "".join(each.text for each in events if isinstance(each, Thought)) == "hm" and done.stats.images == 0
    assert done.conversation.path()[-1].text() == "Use `<picture>`:\n```\n<picture>"
    script(monkeypatch, klein.tokens, "a</picture>\n```\n", "<picture>", "a house", "</picture>", END)
    more = list(klein.continue_answer(done.conversation, options()))[-1]
    assert more.stats.images == 1 and more.conversation.path()[-1].text() == "Use `<picture>`:\n```\n<picture>a</picture>\n```\n"


def test_a_public_pair_gives_longer_answers(klein, tmp_path) -> None:
    assert klein.about["max_tokens"] == 2048 == About.load(tmp_path).max_tokens
    assert [preset_values(name, klein.about)["text", "max_tokens"] for name in ("quick", "balanced", "fine")] == [1024, 2048, 4096]
    (tmp_path / "duogen.json").write_text('{"tuned": true}')
    assert About.load(tmp_path).max_tokens == 512


def test_the_system_prompt_is_followed_and_every_picture_has_the_style_words(klein, monkeypatch) -> None:
    """The MLLM reads the one, the painter the others; the words of the pictures stay those of the MLLM."""
    painted, paint = [], klein.painter.paint

    def watch(frames, request):
        painted.append(request.condition.prompt)
        return paint(frames, request)

    monkeypatch.setattr(klein.painter, "paint", watch)
    script(monkeypatch, klein.tokens, "<picture>a red house.</picture>", "<picture>a door in Ink</picture>", END)
    wanted = replace(options(style_words=" ink "), text=TextOptions(1.0, 1.0, system_prompt="Speak of <picture> as a pirate."))
    *events, done = klein.answer(Conversation().say("user", "Draw."), wanted)
    assert painted == ["a red house. ink", "a door in Ink"]
    assert [image.alt for image in done.conversation.path()[-1].images()] == ["a red house.", "a door in Ink"]
    read = klein.tokens.tokenizer.decode(klein.memory.context.packed.ids)
    assert "Speak of <picture> as a pirate." in read.split("Draw.")[0] and not any(isinstance(event, Notice) for event in events)


@pytest.mark.slow
def test_a_real_language_model_as_the_brain(klein) -> None:
    """SmolLM2 as it comes, which knows nothing of pictures: whatever it says, the answer is words and pictures without markup."""
    from duogen.hub.assemble import base_model, processor

    model, tokenizer = base_model(torch.bfloat16)
    swapper = DeviceSwapper(model, [], "cpu")
    pair = replace(klein.pair, text_encoder=model.eval(), tokenizer=tokenizer, image_processor=processor(), swapper=swapper)
    engine = Engine(pair)
    said = Options(3, TextOptions(temperature=0.0, max_tokens=24), ImageOptions(steps=1, max_images=2, preview_every=0))
    asked = Conversation().say("user", "Show me a red house. Write <picture>a red house</picture> and nothing else.")
    done = list(engine.answer(asked, said))[-1]
    assert isinstance(done, Done), done
    turn = done.conversation.path()[-1]
    assert turn.parts and "<pict" not in turn.text() and "</pict" not in turn.text()


def test_a_painter_without_a_talker_is_told_what_to_do(cache, tmp_path) -> None:
    from duogen.hub.catalogue import Source, snapshot

    painter = snapshot(Source("painter", "black-forest-labs/FLUX.2-klein-4B"))
    with pytest.raises(ValueError, match="--mllm"):
        Engine.open(painter, load=LoadOptions(device="cpu", picture_side=SIDE))
    with pytest.raises(ValueError, match="no Qwen2.5-VL or Qwen3-VL"):
        Engine.open(painter, mllm=tmp_path, load=LoadOptions(device="cpu", picture_side=SIDE))


@pytest.fixture(scope="module")
def typed_in(tmp_path_factory) -> tuple[Path, Path]:
    """Folders of a painter and a language model that nothing here was written for."""
    home = tmp_path_factory.mktemp("typed-in")
    return public.pix2pix(home / "painter"), public.qwen2_mllm(home / "mllm")


@pytest.mark.parametrize(("precision", "offload"), [("fp32", "none"), ("nf4", "model"), ("bf16", "group")])
def test_any_pipeline_with_any_language_model_from_folders(typed_in, precision, offload, monkeypatch) -> None:
    load = LoadOptions(device="cpu", precision=precision, painter_precision=precision, picture_side=SIDE, offload=offload)
    engine = Engine.open(typed_in[0], mllm=typed_in[1], load=load)
    script(monkeypatch, engine.tokens, *SAID)
    done = list(engine.answer(Conversation().say("user", "Like this:", picture()), options(guidance=2.0)))[-1]
    assert isinstance(done, Done) and len(done.conversation.path()[-1].images()) == 2, done
    script(monkeypatch, engine.tokens, *SAID)
    failed = list(engine.answer(Conversation().say("user", "Draw"), options()))[-1]
    assert failed.message == "This pair's painter can only change pictures; bring one to begin with."


def test_folders_typed_in_answer_on_the_command_line_and_behind_the_page(typed_in, tmp_path, capsys, monkeypatch) -> None:
    from duogen.cli.main import main
    from ui.parts.loading import Loading

    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("duogen.models.mllm.choose", lambda logits, options, generator: next(ids))
    painter, mllm, out = *map(str, typed_in), tmp_path / "out"
    picture().save(tmp_path / "red.png")
    words = Engine.open(painter, mllm=mllm, load=LoadOptions(device="cpu", picture_side=SIDE)).tokens
    ids = iter([token for piece in SAID for token in (words.text(piece) if isinstance(piece, str) else [piece])])
    asked = ["ask", "Draw", "--image", str(tmp_path / "red.png"), "--pair", painter, "--mllm", mllm, "--picture-side", str(SIDE)]
    assert main([*asked, "--device", "cpu", "--steps", "2", "--out", str(out)]) == 0
    assert "Step 1." in capsys.readouterr().out and (out / "02.png").exists()
    assert main(["plan", "--pair", painter, "--mllm", mllm, "--vram", "8"]) == 0 and "GB on the GPU" in capsys.readouterr().out
    loading = Loading()
    loading.finished.set()
    loading._switch(painter, mllm, LoadOptions(device="cpu", picture_side=SIDE))
    assert loading.words == "Ready: painter.", loading.words
    first = weakref.ref(loading.engine)
    there: list = []
    monkeypatch.setattr("duogen.engine.Engine.open", lambda *given, **named: there.append(first()))
    loading._switch(painter, mllm, LoadOptions(device="cpu", picture_side=2 * SIDE))
    assert there[0] is None, "the pair before is let go of first"


def test_distilled_pipelines_take_few_steps_and_no_guidance(klein, cache) -> None:
    from duogen.hub.catalogue import own_defaults

    painter = next(cache.glob("models--black-forest-labs*/snapshots/*"))
    assert own_defaults(painter)["steps"] == 4 and own_defaults(painter)["guidance"] == 1.0
    assert own_defaults(painter / "nothing")["steps"] == 28
    assert klein.pair.pipe.config.is_distilled


def test_a_compiled_painter_is_asked_for(monkeypatch) -> None:
    """What `torch.compile` makes of it is PyTorch's matter, and takes minutes on a CPU."""
    compiled: list = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, *given, **named: compiled.append(type(self).__name__))
    opened("flux2-klein-4b")
    assert not compiled
    opened("flux2-klein-4b", compile="on")
    assert set(compiled) == {"Flux2TransformerBlock", "Flux2SingleTransformerBlock"}


def test_compiled_frames_are_painted_the_same(monkeypatch) -> None:
    """Traced by PyTorch, but not made into machine code."""
    plain, seen, pictures = torch.compile, [], []
    monkeypatch.setattr(torch, "compile", lambda run, **how: seen.append(run) or plain(run, backend="eager"))
    for wish in ("off", "on"):
        engine = opened("cosmos-predict2.5-2b", compile=wish)
        script(monkeypatch, engine.tokens, *SAID[1:4], END)
        done = list(engine.answer(Conversation().say("user", "Draw", picture()), options(guidance=2.0)))[-1]
        assert isinstance(done, Done), done
        pictures.append(np.asarray(done.conversation.path()[-1].images()[0].picture).astype(int))
    assert len(seen) == 1 and np.abs(pictures[0] - pictures[1]).max() <= 1


def test_layer_by_layer_brings_every_weight_of_the_frame_painter(monkeypatch) -> None:
    """It is walked, not called: a layer whose own forward is what brings it would stay away from the GPU."""
    from diffusers.hooks.group_offloading import ModuleGroup

    came, plain = set(), ModuleGroup.onload_

    def onload(self):
        came.update(id(weight) for module in self.modules for weight in module.parameters())
        came.update(id(weight) for weight in self.parameters)
        return plain(self)

    monkeypatch.setattr(ModuleGroup, "onload_", onload)
    engine = opened("cosmos-predict2.5-2b", offload="group")
    script(monkeypatch, engine.tokens, *SAID[1:4], END)
    assert isinstance(list(engine.answer(Conversation().say("user", "Draw", picture()), options()))[-1], Done)
    assert [name for name, weight in engine.pair.transformer.named_parameters() if id(weight) not in came] == []


def test_frames_that_change_little_are_skipped_from_nine_on(monkeypatch) -> None:
    counts, pictures = {}, {}
    for wish, threshold in (("off", 0.08), ("auto", 1e-9), ("auto", 1e3), ("on", 1e3)):
        monkeypatch.setattr("duogen.painters.cosmos.CACHE_THRESHOLD", threshold)
        engine = opened("cosmos-predict2.5-2b", caching=wish)
        for steps in (4, 9):
            calls: list = []
            engine.pair.transformer.transformer_blocks[-1].ff.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
            script(monkeypatch, engine.tokens, *SAID[1:4], END)
            done = list(engine.answer(Conversation().say("user", "Draw", picture()), options(steps=steps, guidance=2.0)))[-1]
            counts[wish, threshold, steps] = len(calls)
            pictures[wish, threshold, steps] = done.conversation.path()[-1].images()[0].picture.tobytes()
    assert [count for (_, _, steps), count in counts.items() if steps == 4] == [4, 4, 4, 1]
    assert [count for (_, _, steps), count in counts.items() if steps == 9] == [9, 9, 1, 1]
    assert pictures["off", 0.08, 9] == pictures["auto", 1e-9, 9], "what is never skipped is the same"


def test_steps_that_change_little_are_skipped_from_nine_on(monkeypatch) -> None:
    engine = opened("qwen-image-edit-2511")
    monkeypatch.setattr("duogen.models.placement.CACHE_THRESHOLD", 1e3)  # random weights change much
    model, counts = engine.pair.pipe.transformer, []
    last = model.transformer_blocks[-1]
    for steps in (9, 4):
        calls: list = []
        watch = last.attn.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        script(monkeypatch, engine.tokens, *SAID[1:4], END)
        done = list(engine.answer(Conversation().say("user", "Draw", picture()), options(steps=steps, guidance=1.0)))[-1]
        assert isinstance(done, Done), done
        counts.append((model.is_cache_enabled, len(calls)))
        watch.remove()
    assert counts[0][0] and counts[0][1] < 9 and counts[1] == (False, 4)


def test_taking_turns_moves_one_out_before_the_other_comes_in() -> None:
    class Part:
        def __init__(self, name: str, where: str) -> None:
            self.name, self.device = name, torch.device(where)

        def to(self, where: str) -> None:
            moves.append((self.name, where))
            self.device = torch.device(where)

    moves: list = []
    swapper = DeviceSwapper(Part("mllm", "cuda"), [Part("dit", "cpu"), Part("vae", "cpu")], "cuda", "cpu")
    swapper.use_mllm()
    assert moves == []
    swapper.use_painter()
    assert moves == [("mllm", "cpu"), ("dit", "cuda"), ("vae", "cuda")]
    swapper.use_mllm()
    assert moves[3:] == [("dit", "cpu"), ("vae", "cpu"), ("mllm", "cuda")]


@pytest.mark.parametrize("name", REPOSITORIES)
def test_offloaded_parts_paint_the_same(name, monkeypatch) -> None:
    """And twice in a row: what leaves the GPU after a picture comes back for the next."""
    pictures = []
    for offload in ("none", "model", "group"):
        engine = opened(name, offload=offload)
        script(monkeypatch, engine.tokens, *SAID)
        done = list(engine.answer(Conversation().say("user", "Draw"), options()))[-1]
        assert isinstance(done, Done), done
        pictures.append([image.picture.tobytes() for image in done.conversation.path()[-1].images()])
    assert len(pictures[0]) == 2 and pictures[0] == pictures[1] == pictures[2]


def test_beside_a_painter_that_comes_layer_by_layer_only_one_is_on_the_card() -> None:
    class Part(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.where = torch.device("cpu")

        def parameters(self, recurse: bool = True):
            return iter([SimpleNamespace(device=self.where)])

        def to(self, where):
            self.where = torch.device(where)
            return self

        def forward(self, tensor: torch.Tensor) -> str:
            return "".join(each.where.type[1] for each in (words, vae))

    words, vae, painter = Part(), Part(), Part()
    away = offload_with_hooks([words, vae], painter, "meta")
    nothing = torch.zeros(1)
    assert [each(nothing) for each in (words, vae, painter, words, painter, vae)] == ["ep", "pe", "pp", "ep", "pp", "pe"]
    away()
    assert vae.where.type == "cpu"


def lightning(snapshot: Path) -> dict[str, torch.Tensor]:
    """A LoRA in the layout of Qwen-Image-Lightning: kohya's names within diffusers' module names, with alphas."""
    from duogen.hub.catalogue import Source
    from duogen.hub.catalogue import snapshot as lying

    config = lying(Source("painter", "Qwen/Qwen-Image-Edit-2511")) / "transformer"
    model = QwenImageTransformer2DModel.from_config(QwenImageTransformer2DModel.load_config(config))
    names = r"attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)|(img|txt)_mlp\.net\.(0\.proj|2)|(img|txt)_mod\.1"
    weights, rank = {}, 4
    generator = torch.Generator().manual_seed(3)
    for name, module in model.named_modules():
        if re.fullmatch(rf"transformer_blocks\.\d+\.({names})", name):
            weights[f"{name}.lora_down.weight"] = torch.randn(rank, module.in_features, generator=generator)
            weights[f"{name}.lora_up.weight"] = torch.randn(module.out_features, rank, generator=generator)
            weights[f"{name}.alpha"] = torch.tensor(2.0)
    save_file({name: each.bfloat16() for name, each in weights.items()}, snapshot / entries()["qwen-image-edit-2511"].presets[0].file)
    return weights


def one_picture(engine: Engine, monkeypatch) -> np.ndarray:
    script(monkeypatch, engine.tokens, *SAID[1:4], END)
    done = list(engine.answer(Conversation().say("user", "Draw", picture()), options(steps=4)))[-1]
    assert isinstance(done, Done), done
    return np.asarray(done.conversation.path()[-1].images()[0].picture).astype(int)


def test_a_few_step_lora_paints_as_if_merged(cache, monkeypatch) -> None:
    name = "qwen-image-edit-2511"
    preset = entries()[name].presets[0]
    with pytest.raises(ValueError, match="not on this machine yet; get it with: python -m duogen pull ID --preset lightning-4"):
        opened(name, preset=preset.id)
    snapshot = public.in_cache(cache, preset.repo, preset.revision, lambda folder: None)
    weights = lightning(snapshot)
    engine = opened(name, preset=preset.id)
    assert engine.about["steps"] == 4 and engine.about["guidance"] == 1.0
    assert engine.plan.load.preset == preset.id
    kept = engine.pair.pipe.scheduler.config
    assert kept["shift_terminal"] is None and abs(kept["base_shift"] - math.log(3)) < 1e-9 and kept["use_dynamic_shifting"]
    plain = opened(name)
    plain.painter.scheduler = engine.painter.scheduler
    without = one_picture(plain, monkeypatch)
    with torch.no_grad():
        for key in [key for key in weights if key.endswith(".alpha")]:
            down, up = (weights[key.replace("alpha", f"lora_{part}.weight")].bfloat16().float() for part in ("down", "up"))
            plain.pair.pipe.transformer.get_submodule(key.removesuffix(".alpha")).weight += up @ down * 2.0 / len(down)
    lora, merged = one_picture(engine, monkeypatch), one_picture(plain, monkeypatch)
    assert np.abs(lora - merged).max() <= 1 and np.abs(lora - without).max() > 8
    assert one_picture(opened(name, "nf4", preset=preset.id), monkeypatch).std() > 0


@torch.no_grad()
def test_masked_attention_is_pytorchs_own(monkeypatch) -> None:
    """xformers would add a boolean mask to the scores, flash would refuse any."""
    from diffusers.models.attention_processor import Attention

    from duogen.nn.attention import attend

    seen = []
    monkeypatch.setattr("duogen.nn.attention.dispatch_attention_fn", lambda q, *_, attn_mask, backend: seen.append(str(backend)) or q)
    attn = Attention(8, heads=2, dim_head=4)
    attn.processor._attention_backend = "xformers"
    states = torch.zeros(1, 2, 3, 4)
    for mask in (None, torch.ones(1, 1, 1, 3, dtype=torch.bool)):
        attend(attn, states, states, states, mask)
    assert seen[0] == "xformers" and "NATIVE" in seen[1]


def test_what_was_measured_beats_the_estimate(tmp_path, monkeypatch) -> None:
    from duogen.hub.catalogue import find
    from duogen.hub.load import plan_pair

    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path))
    engine = opened("flux2-klein-4b")
    found, load = find("flux2-klein-4b"), LoadOptions(device="cpu", precision="fp32", painter_precision="fp32", picture_side=SIDE)
    before = plan_pair(found, load)[0].plan
    assert before.seconds > 0 and not before.measured
    monkeypatch.setattr(type(engine.painter), "paint", slowly(type(engine.painter).paint))
    one_picture(engine, monkeypatch)
    after = plan_pair(found, load)[0].plan
    assert after.measured and after.seconds > 0.4 and ", as measured here." in after.line()
    assert not plan_pair(found, replace(load, picture_side=2 * SIDE))[0].plan.measured
    (tmp_path / "timings.json").write_text("[")
    assert not plan_pair(found, load)[0].plan.measured


def test_a_picture_is_estimated_before_it_is_painted_and_refused_when_too_large(klein, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path))
    begun = []
    for wish in (options(), options(), options(steps=4), options(side=2 * SIDE)):
        script(monkeypatch, klein.tokens, *SAID[1:4], END)
        begun += [event.seconds for event in klein.answer(Conversation().say("user", "Draw"), wish) if isinstance(event, ImageStarted)]
        monkeypatch.setattr("duogen.hub.timings.note", lambda *given: None)  # the first picture tells how fast this machine is
    assert 0 < begun[1] < begun[2] and begun[1] < begun[3]
    small = Machine(0, klein.plan.host + HOST_SPARE + 2**20)
    monkeypatch.setattr(klein.costs, "machine", small)
    script(monkeypatch, klein.tokens, *SAID[1:4], END)
    assert isinstance(list(klein.answer(Conversation().say("user", "Draw"), options()))[-1], Done), "what was planned for is never refused"
    script(monkeypatch, klein.tokens, *SAID[1:4], END)
    events = list(klein.answer(Conversation().say("user", "Draw"), options(side=2048)))
    refused = "A picture of 2048 x 2048 px does not fit: it would need .* GB of free host memory, .* would swap.*choose a smaller side"
    assert re.match(refused, events[-1].message) and not [event for event in events if isinstance(event, ImageStarted)]


def slowly(paint):
    def painted(*given):
        for each in paint(*given):
            time.sleep(0.1)
            yield each

    return painted


def test_the_kernel_is_said() -> None:
    assert "Attention kernel: PyTorch's own." in opened("flux2-klein-4b").plan.line()
