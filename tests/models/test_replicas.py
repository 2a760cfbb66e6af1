"""Answers of replicas on a Ray cluster of two machines, one of which is lost, beside those of an engine in this process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file

from duogen.cli.main import main
from duogen.conversation import Conversation, Image, Text
from duogen.engine import Engine, Memory
from duogen.evaluate.answer_files import answer_all, load_answer
from duogen.evaluate.benchmarks import find_benchmark
from duogen.evaluate.tasks import load_tasks
from duogen.events import AnswerBuilder, Done, Failed, ImageDone, ImageStep, Restarted
from duogen.options import ImageOptions, LoadOptions, Options, TextOptions
from duogen.replicas.cluster import RayCluster
from duogen.replicas.engine import RESTARTED
from duogen.replicas.room import Machine, Share, name_devices, plan_share
from duogen.replicas.wire import Call, Pictures
from tests.support.browser import Server, browser_only, loaded_pictures, send, wait_until_answered
from tests.support.tiny import END, served_pair
from tests.support.waiting import patience, until

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Using extra keyword arguments")]
OPTIONS = Options(3, TextOptions(temperature=0.4), ImageOptions(steps=60, max_images=2, preview_every=0))
ASKED = Conversation().say("user", PILImage.new("RGB", (64, 64), "teal"), "How do I draw a house?")
STORE = 100_000_000


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pair that takes its time: it paints in 100 steps, and never ends its turn before the last picture that it may paint."""
    folder = served_pair(tmp_path_factory.mktemp("pair"))
    about = json.loads((folder / "duogen.json").read_text())
    (folder / "duogen.json").write_text(json.dumps(about | {"steps": 100}))
    file = folder / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    weights["lm_head.weight"][END, 0] = -30.0
    save_file(weights, file, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def engine(pair: Path) -> Engine:
    return Engine.open(pair, "cpu")


@pytest.fixture(scope="module")
def machines() -> Iterator[Any]:
    """A Ray cluster of two machines with a core each, which are processes of this one."""
    pytest.importorskip("ray.serve")
    from ray.cluster_utils import Cluster

    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's own is 15: on a busy machine its workers would hardly get on
    about, cluster = {"num_cpus": 1, "object_store_memory": STORE}, Cluster()
    add_machine(cluster, **about, include_dashboard=False)
    cluster.second = add_machine(cluster, **about, node_ip_address="127.0.0.2")  # so that this process belongs to the first
    yield cluster
    cluster.shutdown()


def add_machine(cluster: Any, **about: Any) -> Any:
    """Ray gives a machine 30 seconds to come up, which a busy one may need twice."""
    end = time.monotonic() + patience()
    while True:
        try:
            return cluster.add_node(**about)
        except Exception:
            if time.monotonic() > end:
                raise


@pytest.fixture(scope="module")
def cluster(machines: Any, pair: Path) -> Iterator[RayCluster]:
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    cluster = RayCluster.connect(machines.address, None, "cpu", str(pair))
    assert cluster.share == Share(2, 1, 0) and handlers == {each: signal.getsignal(each) for each in handlers}
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def replicas(cluster: RayCluster, pair: Path) -> Any:
    return cluster.open(str(pair), load=LoadOptions(device="cpu"))


def contents(answer: AnswerBuilder) -> list[Any]:
    """Words, and the pixels and seeds of pictures."""
    assert answer.stats and not answer.error
    return [part.text if isinstance(part, Text) else (part.picture.tobytes(), part.seed, part.origin) for part in answer.parts]


def ask(who: Any, conversation: Conversation = ASKED, options: Options = OPTIONS) -> AnswerBuilder:
    return AnswerBuilder.from_events(who.answer(conversation, options))


def test_replicas_answer_as_an_engine_does(replicas: Any, engine: Engine) -> None:
    here, there = ask(engine), ask(replicas)
    assert contents(here) == contents(there) and len(there.images()) == 2
    branch = there.conversation.at(ASKED.head).say("assistant", "another branch").at(there.conversation.head)
    assert there.conversation.path()[0] is ASKED.path()[0], "what was sent came back"
    for conversation in (branch, branch.at(ASKED.head)):
        more = conversation.say("user", "Make the door green.")
        found = ask(replicas, more)
        engine.memory = Memory()  # another replica reads the conversation anew, the same one remembers it
        read = contents(ask(engine, more))
        own = ask(engine).conversation
        remembered = contents(ask(engine, own.say("user", "Make the door green.")))
        assert contents(found) in (read, remembered)
        assert found.conversation.turns.keys() == more.turns.keys() | {found.conversation.head}
    engine.memory = Memory()
    begun = there.conversation.with_turn(replace(there.conversation.path()[-1], parts=there.conversation.path()[-1].parts[:1]))
    first, second = (AnswerBuilder.from_events(each.continue_answer(begun, OPTIONS)) for each in (engine, replicas))
    assert contents(first) == contents(second)
    with pytest.raises(ValueError, match="no answer to go on with"):
        list(replicas.continue_answer(ASKED, OPTIONS))
    painted = [list(each.stream_image(begun, OPTIONS))[-1] for each in (engine, replicas)]
    assert all(isinstance(each, ImageDone) for each in painted)
    assert painted[0].image.picture.tobytes() == painted[1].image.picture.tobytes()
    picture = PILImage.linear_gradient("L").convert("RGB")
    kept = [each.keep_unchanged(painted[0].image.picture, picture).tobytes() for each in (engine, replicas)]
    assert kept[0] == kept[1]
    assert replicas.tokens.grid_of_size((64, 64)) == engine.tokens.grid_of_size((64, 64)) and replicas.about == engine.about
    failed = [list(each.answer(Conversation(), OPTIONS))[-1] for each in (engine, replicas)]
    assert all(isinstance(each, Failed) for each in failed) and failed[0].message == failed[1].message


def test_an_adapter_that_does_not_fit_is_refused(replicas: Any, tmp_path: Path) -> None:
    from duogen.models.adapters import AdapterSpec

    with pytest.raises(ValueError, match="adapter"):
        replicas.set_adapters([AdapterSpec(tmp_path)])
    assert replicas.adapters == () and ask(replicas).images()


def test_a_stop_reaches_the_replica(replicas: Any) -> None:
    long, stop, after = replace(OPTIONS, image=replace(OPTIONS.image, steps=100, max_images=8)), threading.Event(), 0
    for event in replicas.answer(ASKED, long, stop):
        after += stop.is_set() and isinstance(event, ImageStep)
        if isinstance(event, ImageStep):
            stop.set()
    assert isinstance(event, Done) and event.stats.stopped == "user" and after < 100, "the picture was not finished"
    closed = replicas.answer(ASKED, long)
    while not isinstance(next(closed), ImageStep):
        pass
    closed.close()  # a tab that is gone; both replicas must be free again
    with ThreadPoolExecutor(2) as pool:
        assert len({str(contents(each)) for each in pool.map(lambda _: ask(replicas), range(2))}) == 1


def test_two_answers_outlive_a_replica(replicas: Any, engine: Engine) -> None:
    begun, dead = {3: threading.Event(), 4: threading.Event()}, threading.Event()
    long = replace(OPTIONS, image=replace(OPTIONS.image, steps=100, max_images=4))

    def follow(seed: int) -> tuple[AnswerBuilder, int]:
        answer, restarts = AnswerBuilder(), 0
        for event in replicas.answer(ASKED, replace(long, seed=seed)):
            answer.take(event)
            restarts += isinstance(event, Restarted)
            begun[seed].set()
            dead.wait()
        return answer, restarts

    mine = {each.pid for each in psutil.Process().children(recursive=True)}
    processes = [each.process for each in replicas.opened]
    assert len(mine & set(processes)) == 2
    with ThreadPoolExecutor(2) as pool:
        following = [pool.submit(follow, seed) for seed in begun]
        until(lambda: all(each.is_set() for each in begun.values()))
        os.kill(processes[0], signal.SIGKILL)
        dead.set()
        found = [each.result() for each in following]
    assert sorted(restarts for _, restarts in found) == [0, 1]
    for seed, (answer, restarts) in zip(begun, found, strict=True):
        assert contents(answer) == contents(ask(engine, options=replace(long, seed=seed)))
        assert answer.notices == [RESTARTED] * restarts


def test_a_benchmark_is_shared_out(replicas: Any, engine: Engine, cluster: RayCluster, tmp_path: Path, monkeypatch) -> None:
    benchmark = find_benchmark("geneval")
    tasks = load_tasks(benchmark, None, 4)
    painting: Any = {"steps": 2}
    answer_all(engine, benchmark, tasks, tmp_path / "here", 5, lambda words: None, painting=painting)

    class Connected:
        share = cluster.share

        def open(self, *_: Any, **__: Any) -> Any:
            return replicas

        def close(self) -> None: ...

    monkeypatch.setattr("duogen.cli.evaluate.connect_as_flags_say", lambda given: Connected())
    command = ["evaluate", "geneval", "--limit", "4", "--answer-only", "--seed", "5", "--steps", "2", "--out", str(tmp_path / "there")]
    assert main([*command, "--ray", "auto", "--replicas", "2"]) == 0
    for task in tasks:
        here, there = (read_parts(tmp_path / name, task.id) for name in ("here", "there"))
        assert here == there and here


def read_parts(root: Path, task: str) -> list[str | bytes]:
    return [part if isinstance(part, str) else part.read_bytes() for part in load_answer(root, task) or ()]


def test_a_pair_that_is_not_there_is_said(cluster: RayCluster, replicas: Any, tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(ValueError, match="nowhere"):
        cluster.open(str(tmp_path / "nowhere"), progress=said.append, load=LoadOptions(device="cpu"))
    assert cluster.app == "" and said[0].startswith("The cluster starts 2 replicas")


# On the page


def halt_in_mid_answer(page: Any) -> psutil.Process:
    """Ask, and halt the replica that answers while it paints; returns its process."""
    found = [each for each in psutil.Process().children(recursive=True) if "ServeReplica" in each.name() + "".join(each.cmdline())]
    before = {each: each.cpu_times().user for each in found}
    send(page, "How do I draw a house?")
    page.wait_for_selector("#talk .pending progress")
    busy = max(found, key=lambda each: each.cpu_times().user - before[each])
    busy.suspend()
    return busy


@browser_only
def test_two_browsers_are_answered_though_a_machine_is_lost(machines: Any, cluster: RayCluster, pair: Path, tmp_path: Path, tab) -> None:
    from ui.parts.i18n import translate_into

    cluster.close()  # the page has its own connection
    server = Server(tmp_path, "--pair", str(pair), "--device", "cpu", "--ray", machines.address, "--replicas", "2")
    try:
        until(lambda: "Ready" in server.log.read_text())  # the drawer shows the pair's own steps then
        pages = {language: tab(server.address, locale=language) for language in ("en", "de")}
        halted = [halt_in_mid_answer(page) for page in pages.values()]
        machines.remove_node(machines.second, allow_graceful=False)
        for each in halted:
            with contextlib.suppress(psutil.NoSuchProcess):  # it was of the machine that is lost
                each.resume()
        for page in pages.values():
            wait_until_answered(page)
            assert loaded_pictures(page, 8) == 8
        told = [translate_into(language, RESTARTED) in page.inner_text("#talk") for language, page in pages.items()]
        assert any(told), "the answer that was begun again does not say so"
    finally:
        server.leave()


# Without a cluster


def test_the_same_pixels_are_the_same_picture() -> None:
    """A replica finds what it remembers; a picture travels once."""
    here, there, sent = Pictures({}), Pictures({}), set()
    picture, mask = PILImage.radial_gradient("L").convert("RGB"), PILImage.new("L", (256, 256), 9)
    call = Call("answer", (Conversation().say("user", Image(picture, mask=mask), Image(picture.copy())),), more={"drafts": ("a",)})
    packed = here.pack(call, sent)
    images = there.unpack(packed).arguments[0].path()[0].images()
    assert images[0].shows_same(images[1]) and images[0].picture.tobytes() == picture.tobytes() and images[0].mask.mode == "L"
    assert there.unpack(here.pack(call, set())).arguments[0].path()[0].images()[0].shows_same(images[0])
    assert len(here.pack(call, sent)) < 2000 < len(packed)


@pytest.mark.parametrize(
    ("machines", "replicas", "device", "share"),
    [
        ([(4, 0), (4, 0)], None, "auto", Share(2, 4, 0)),
        ([(4, 0), (4, 0)], 3, "auto", Share(3, 2, 0)),
        ([(16, 0), (2, 0)], 2, "cpu", Share(2, 8, 0)),
        ([(16, 4), (16, 4)], None, "auto", Share(8, 4, 1)),
        ([(16, 4), (0, 1), (8, 0)], 4, "cuda", Share(4, 4, 1)),
        ([(16, 4)], None, "cuda:0,cuda:1", Share(2, 8, 2)),
        ([(16, 4)], 2, "cpu", Share(2, 8, 0)),
    ],
)
def test_a_replica_gets_its_share(machines: list, replicas: int | None, device: str, share: Share) -> None:
    assert plan_share([Machine(*each) for each in machines], replicas, device) == share


@pytest.mark.parametrize(
    ("machines", "replicas", "device", "said"),
    [([(2, 0)], 3, "cpu", "cores for 2"), ([(2, 0)], 1, "cuda", "GPUs for 0"), ([(8, 2)], 3, "auto", "GPUs for 2"), ([], None, "cpu", "0")],
)
def test_a_cluster_without_room_says_so(machines: list, replicas: int | None, device: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plan_share([Machine(*each) for each in machines], replicas, device)


def test_a_replica_counts_its_own_gpus() -> None:
    assert name_devices(LoadOptions(device="cuda:3")).device == "cuda:0"
    assert name_devices(LoadOptions(device="cuda:2,cuda:5")).device == "cuda:0,cuda:1"
    assert [name_devices(LoadOptions(device=each)).device for each in ("auto", "cpu")] == ["auto", "cpu"]


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:none", "127.0.0.1:99999", "127.0.0.1:9", ":", "ray://127.0.0.1:9", "silent"])
def test_a_bad_address_is_said_in_a_sentence(address: str, tmp_path: Path, capsys) -> None:
    pytest.importorskip("ray.serve")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}" if address == "silent" else address
        command = ["evaluate", "geneval", "--limit", "1", "--answer-only", "--out", str(tmp_path / "out"), "--ray", address]
        assert main(command) == 2
    said = capsys.readouterr().err
    assert address in said and said.count("\n") == 1 and "Traceback" not in said and not (tmp_path / "out").exists()


def test_flags_that_make_no_sense_are_said_in_a_sentence(tmp_path: Path, capsys, monkeypatch) -> None:
    command = ["evaluate", "geneval", "--limit", "1", "--answer-only", "--out", str(tmp_path / "out")]
    for flags, said in ((["--replicas", "2"], "--ray ADDRESS"), (["--ray", "auto", "--replicas", "0"], "at least 1")):
        assert main([*command, *flags]) == 2 and said in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([*command, "--ray", "local"]) == 2 and 'pip install "ray[serve]"' in capsys.readouterr().err
