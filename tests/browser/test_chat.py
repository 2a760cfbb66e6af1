"""The chat that people stay in, in a real browser: branches, pictures painted anew, and nothing lost. The engine is `stand_in.py`."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pypdfium2
import pytest
from PIL import Image as PILImage
from playwright.sync_api import expect

from duogen.conversation import Conversation, Text, Turn
from duogen.conversation import Image as Picture
from duogen.finetune.preferences import read_preferences
from duogen.library.conversations import ConversationStore
from tests.support.browser import (
    SHOTS,
    Server,
    act,
    browser_only,
    loaded_pictures,
    overflow_width,
    send,
    settle,
    stand_in,
    wait_until_answered,
)  # fmt: skip
from tests.support.waiting import patience
from ui.chat.correct import apply_correction, write_words
from ui.parts.shared import Refusal

QUESTION = "How do I draw a boat?"


def open_answered(tab, server: Server, words: str = QUESTION, ready: str = "Ready", **look):
    page = tab(server.address, **look)
    page.wait_for_selector(f"#status:has-text('{ready}')")
    send(page, words)
    wait_until_answered(page)
    page.wait_for_selector("text=All done!")
    return page


def list_pictures(page) -> list[str]:
    return page.eval_on_selector_all("#talk .bot figure.card > a", "links => links.map(link => link.getAttribute('href'))")


def read_words(page, who: str = "bot") -> str:
    """All words of the answers, or of the questions."""
    return "\n".join(page.locator(f"#talk .{who}").all_inner_texts())


def count_questions(page) -> int:
    return page.locator("#talk .user button.i-edit").count()


def open_list(page) -> None:
    if not page.locator("#side.open, #side .sidebar.open, .sidebar.open#side").count():
        page.click("#open-side")
    page.wait_for_selector("#chats li")
    settle(page)


@browser_only
def test_a_killed_server_loses_nothing_finished(tab, tmp_path: Path) -> None:
    server = stand_in(tmp_path)
    page = tab(server.address)
    page.wait_for_selector("#status:has-text('Ready')")
    send(page, f"{QUESTION} Go slowly.")
    page.wait_for_function("document.querySelectorAll('#talk .bot .card:not(.pending) img').length == 2")
    page.wait_for_selector("#talk .pending progress")
    page.screenshot(path=SHOTS / "pending.png")
    send(page, "And a ship?")
    page.wait_for_selector("#waiting-list li")
    page.wait_for_url("**/?c=*")
    chat = page.url.partition("?c=")[2]
    server.end()
    again = stand_in(tmp_path)
    try:
        back = tab(f"{again.address}?c={chat}")
        back.wait_for_selector("text=broken off")
        assert loaded_pictures(back, 2) == 2 and "Put a mast on it" in read_words(back)
        assert QUESTION in read_words(back, "user")
        old = list_pictures(back)
        back.click("#talk .bot button:has-text('Go on')")
        back.wait_for_selector("text=All done!")
        back.wait_for_selector("#box .submit-button")
        assert loaded_pictures(back, 3) == 3 and list_pictures(back)[:2] == old
        expect(back.locator("#waiting-list .words")).to_have_text("And a ship?")
        back.click("#waiting-list:has-text('The list waits') button:has-text('Go on with the list')")
        back.wait_for_selector("#talk .user:has-text('And a ship?')")
        back.wait_for_selector("#talk .bot:has-text('All done!') >> nth=1")
        back.wait_for_selector("#box .submit-button")
        assert ConversationStore(tmp_path / "conversations").read_about(chat)["waiting"] == []
    finally:
        again.end()


@browser_only
def test_an_answer_goes_on_without_its_tab_and_windows_stay_apart(fast: Server, tab) -> None:
    first, second = tab(fast.address), tab(fast.address)
    for page in (first, second):
        page.wait_for_selector("#status:has-text('Ready')")
    send(first, f"{QUESTION} Go slowly.")
    first.wait_for_selector("#talk .pending")
    send(second, "And a ship?")
    second.wait_for_selector("#status:has-text('1 answer is before yours')")
    first.wait_for_url("**/?c=*")
    address = first.url
    first.close()
    (fast.home / "go").touch()
    back = tab(address)
    back.wait_for_selector("text=All done!")
    wait_until_answered(back)
    expect(back.locator("#talk")).not_to_contain_text("And a ship?")
    second.wait_for_selector("text=All done!")
    wait_until_answered(second)
    assert count_questions(second) == 1
    expect(second.locator("#talk")).not_to_contain_text(QUESTION)


@browser_only
def test_stop_stops_and_keeps_what_is_there(fast: Server, tab) -> None:
    page = tab(fast.address)
    page.wait_for_selector("#talk .example")
    send(page, f"{QUESTION} Go slowly.")
    page.wait_for_selector("#talk .bot img.picture")
    page.click("#box .stop-button")
    page.wait_for_selector("#box .submit-button")
    expect(page.locator("#status")).to_contain_text("Stopped")
    settle(page)
    words = page.inner_text("#talk .bot")
    page.wait_for_timeout(1500)  # thirty times what its next picture takes
    assert page.inner_text("#talk .bot") == words and len(words) > 3 and "All done!" not in words


@browser_only
def test_what_is_sent_meanwhile_is_asked_afterwards(fast: Server, tab) -> None:
    page = open_answered(tab, fast)
    send(page, "And a ship? Go slowly.")
    page.wait_for_selector("#talk .pending")
    send(page, "And a green one?")
    page.wait_for_selector("#waiting-list li")
    page.click("#new")
    page.wait_for_selector("#talk .example")
    page.click("#tab-library-button")
    page.locator("#library-grid .thumbnail-item").first.click()
    page.click("#library-talk")
    page.wait_for_selector("#waiting-list li")
    (fast.home / "go").touch()
    page.wait_for_function("document.querySelectorAll('#talk .user button.i-edit').length == 3")
    page.wait_for_selector("#talk .bot:has-text('All done!') >> nth=1")
    page.wait_for_selector("#box .submit-button")
    assert count_questions(page) == 3 and loaded_pictures(page, 6) >= 6 and "And a green one?" in read_words(page, "user")


@browser_only
def test_an_edited_question_makes_a_branch_and_the_old_one_stays(fast: Server, tab) -> None:
    page = open_answered(tab, fast)
    old = list_pictures(page)
    act(page, "edit", who="user")
    page.wait_for_function("document.querySelector('#box textarea').value != ''")
    assert page.input_value("#box textarea") == QUESTION
    send(page, "How do I draw a green boat?")
    page.wait_for_selector("#talk .user .count:has-text('2/2')")
    wait_until_answered(page)
    page.wait_for_selector("text=All done!")
    assert "green boat" in read_words(page, "user") and list_pictures(page) != old
    page.screenshot(path=SHOTS / "branch.png")
    page.click("#talk .user button[title='The branch before']")
    page.wait_for_selector("#talk .user .count:has-text('1/2')")
    assert QUESTION in read_words(page, "user") and list_pictures(page) == old


@browser_only
def test_a_corrected_answer_is_a_branch_to_learn_from(fast: Server, tab) -> None:
    page = open_answered(tab, fast)
    old = list_pictures(page)
    act(page, "edit")
    page.wait_for_function("document.querySelector('#box textarea').value.includes('[3]')")
    words = page.input_value("#box textarea")
    send(page, words + "[9]")
    page.wait_for_selector("text=[9] stands for no picture here")
    send(page, words.replace("[2]", "").replace("All done!", "There it floats."))
    page.wait_for_selector("#talk .bot .count:has-text('2/2')")
    assert "There it floats." in read_words(page) and list_pictures(page) == [old[0], old[2]]
    act(page, "teach")
    page.wait_for_selector("text=It is an example now")
    act(page, "better")
    page.wait_for_selector("text=This version counts as better")
    (pair,) = read_preferences(fast.home / "arena").examples
    assert "There it floats." in pair.lines[-1].text() and "All done!" in pair.worse.lines[-1].text()
    page.click("#talk .bot button[title='The branch before']")
    page.wait_for_selector("#talk .bot .count:has-text('1/2')")
    assert "All done!" in read_words(page) and list_pictures(page) == old
    page.click("button[role=tab]:has-text('Fine-tune')")
    expect(page.locator("#finetune-votes")).to_have_text("Learn from my votes (1)")
    page.click("#finetune-votes")
    page.wait_for_selector("text=Learning needs 8 votes between answers that differ in words or pictures, and has 1")


def test_words_of_an_answer_and_back() -> None:
    some, others = (Picture(PILImage.new("RGB", (8, 8), colour)) for colour in ("red", "blue"))
    turn = Turn("assistant", (Text("One.\n\n"), some, Text("Two [sic]. "), others, Text("Done.")))
    assert write_words(turn) == "One.\n\n[1]Two [sic]. [2]Done." and apply_correction(turn, write_words(turn)) == turn.parts
    assert apply_correction(turn, "Only [2] this.") == (Text("Only "), others, Text(" this."))
    for words in ("[2] then [1]", "[1] and [1]", "[3]", "[0]"):
        with pytest.raises(Refusal, match="stands for no picture here"):
            apply_correction(turn, words)
    with pytest.raises(Refusal, match="what the answer should say"):
        apply_correction(turn, " ")


@browser_only
def test_one_picture_is_painted_again_and_the_others_stay(fast: Server, tab) -> None:
    page = open_answered(tab, fast)
    old = list_pictures(page)
    act(page, "again", 1)
    page.wait_for_selector("#talk .versions button >> nth=1")
    page.wait_for_selector("#box .submit-button")
    new = list_pictures(page)
    assert [one == other for one, other in zip(old, new, strict=True)] == [True, False, True]
    assert "All done!" in read_words(page)
    page.screenshot(path=SHOTS / "painted-again.png")
    act(page, "words", 0)
    page.wait_for_function("document.querySelector('#box textarea').value.includes('hull')")
    send(page, "Step 1. Draw a long hull.")
    page.wait_for_selector("#talk .versions button >> nth=3")
    page.wait_for_selector("#box .submit-button")
    assert "long hull" in read_words(page) and list_pictures(page)[1:] == new[1:]
    act(page, "use", 2)
    page.wait_for_selector("#box .thumbnail-item")


@browser_only
def test_what_comes_after_a_picture_is_told_anew(fast: Server, tab) -> None:
    page = open_answered(tab, fast)
    old = list_pictures(page)
    act(page, "on", 0)
    page.wait_for_selector("#talk .bot .count:has-text('2/2')")
    page.wait_for_selector("#box .submit-button")
    new = list_pictures(page)
    assert [one == other for one, other in zip(old, new, strict=True)] == [True, False, False]
    page.click("#talk .bot button[title='The branch before']")
    page.wait_for_selector("#talk .bot .count:has-text('1/2')")
    assert list_pictures(page) == old


@browser_only
def test_conversations_are_found_named_deleted_and_brought_back(fast: Server, tab) -> None:
    page = open_answered(tab, fast, "How do I draw a submarine?")
    open_list(page)
    expect(page.locator("#chats h2").first).to_have_text("Today")
    expect(page.locator("#chats .open .title").first).to_have_text("Submarine")
    page.wait_for_function("document.querySelector('#chats .open img').naturalWidth > 0")
    page.fill("#search input, #search textarea", "submarine")
    page.wait_for_function("document.querySelectorAll('#chats li').length == 1")
    page.click("#chats summary")
    settle(page)
    page.screenshot(path=SHOTS / "conversations.png")
    page.click("#chats button:has-text('Rename')")
    page.fill("#chats input", "Under the sea")
    page.keyboard.press("Enter")
    page.wait_for_selector("#chats .open:has-text('Under the sea')")
    page.click("#chats summary")
    page.click("#chats button:has-text('Delete')")
    page.wait_for_selector("#status:has-text('is deleted')")
    page.wait_for_selector("#chats .none")
    page.click("#status button:has-text('Undo')")
    page.wait_for_selector("#chats .open:has-text('Under the sea')")
    page.wait_for_selector("#talk .user:has-text('submarine')")
    act(page, "drop", who="user")
    page.wait_for_selector("#talk .example, #talk .placeholder")
    page.click("#status button:has-text('Undo')")
    page.wait_for_selector("#talk .user:has-text('submarine')")


@browser_only
def test_an_answer_leaves_as_pdf_and_a_conversation_comes_back_as_zip(fast: Server, tab, tmp_path: Path) -> None:
    page = open_answered(tab, fast, "How do I draw a raft?")
    with page.expect_download() as waiting:
        act(page, "pdf")
    waiting.value.save_as(tmp_path / "guide.pdf")
    assert (tmp_path / "guide.pdf").read_bytes().startswith(b"%PDF") and waiting.value.suggested_filename == "Raft.pdf"
    act(page, "print")
    paper = page.frame_locator("#printed")
    paper.locator("figure.step >> nth=2").wait_for(state="attached")
    expect(paper.locator("h1")).to_contain_text("How do I draw a raft?")
    open_list(page)
    page.click("#chats li.on summary")
    with page.expect_download() as waiting:
        page.click("#chats li.on button:has-text('Save to bring back')")
    waiting.value.save_as(tmp_path / "raft.zip")
    assert "conversation.json" in zipfile.ZipFile(tmp_path / "raft.zip").namelist()
    page.set_input_files("#bring input[type=file], input#bring, #side input[type=file]", tmp_path / "raft.zip")
    page.wait_for_selector("#status:has-text('The conversation is here')")
    assert loaded_pictures(page, 3) == 3


@browser_only
def test_a_damaged_conversation_can_be_saved_and_deleted(fast: Server, tab, tmp_path: Path) -> None:
    store = ConversationStore(fast.home / "conversations")
    broken = store.save(Conversation(title="A wreck").say("user", "x"))
    file = store.folder / broken.id / "conversation.json"
    file.write_bytes(file.read_bytes()[:-9])
    page = open_answered(tab, fast)
    open_list(page)
    entry = page.locator("#chats li", has_text="A wreck")
    expect(entry.locator(".damaged")).to_have_attribute("title", "Damaged")
    entry.locator("button.open").click()
    page.wait_for_selector(".toast-message-text:has-text('is damaged')")
    page.locator(".toast-close").first.click()
    entry.locator("summary").click()
    expect(entry.locator(".menu button")).to_have_text(["Save its files", "Delete"])
    with page.expect_download() as waiting:
        entry.locator("button:has-text('Save its files')").click()
    waiting.value.save_as(tmp_path / "wreck.zip")
    assert waiting.value.suggested_filename == "A-wreck.zip"
    assert zipfile.ZipFile(tmp_path / "wreck.zip").read("conversation.json") == file.read_bytes()
    entry.locator("summary").click()  # any button closes the menu
    entry.locator("button:has-text('Delete')").click()
    expect(entry).to_have_count(0)
    page.click("#status button:has-text('Undo')")
    expect(entry).to_have_count(1)
    store.delete(broken.id)


@browser_only
def test_drafts_are_folded_and_played_in_the_place_of_their_picture(fast: Server, tab) -> None:
    colours = {"Step 1. Paint it red.\n": "red", "Step 2. Paint it green.\n": "green"}
    drafts = tuple(Picture(PILImage.new("RGB", (64, 64), colour), 1, 0.1, words) for words, colour in colours.items())
    drawn = Picture(drafts[1].picture, 1, 0.2, "A green one.", drafts=drafts)
    store = ConversationStore(fast.home / "conversations")
    said = store.save(Conversation(title="Drawn").say("user", "x").say("assistant", "A green one.", drawn))
    page = open_answered(tab, fast)
    open_list(page)
    page.click("#chats li:has-text('Drawn') button.open")
    picture = page.locator("#talk figure.card img.picture")
    expect(page.locator("#talk .drafts summary")).to_have_text("2 drafts")
    shown = picture.get_attribute("src")
    page.click("#talk .drafts summary")
    tiles = [page.locator("#talk .drafts img").nth(at).get_attribute("src") for at in range(2)]
    for tile in tiles:
        page.wait_for_function("src => document.querySelector('#talk img.picture').src.endsWith(src)", arg=tile.removeprefix("/"))
    page.wait_for_function("!document.querySelector('#talk .drafts').classList.contains('playing')")
    assert picture.get_attribute("src").endswith(shown.removeprefix("/")) and "Paint it red." in page.inner_text("#talk .drafts")
    page.screenshot(path=SHOTS / "drafts.png")
    store.delete(said.id)


@browser_only
def test_the_chat_on_a_phone_and_in_the_dark(fast: Server, tab) -> None:
    page = open_answered(tab, fast, viewport={"width": 390, "height": 844}, has_touch=True, color_scheme="dark")
    assert overflow_width(page) <= 0
    page.screenshot(path=SHOTS / "chat-phone-dark.png")
    page.click("#open-side")
    settle(page)
    page.screenshot(path=SHOTS / "conversations-phone.png")
    paper = pypdfium2.PdfDocument(page.pdf(format="A5", prefer_css_page_size=False))  # small, for more than one page
    words = [" ".join(each.get_textpage().get_text_range().split()) for each in paper]
    pictures = [sum(part.type == pypdfium2.raw.FPDF_PAGEOBJ_IMAGE for part in each.get_objects()) for each in paper]
    steps = [len(re.findall(r"\b[1-3] ", each)) for each in words]
    assert sum(pictures) == 3 and steps == pictures, "a step is not with its picture"
    assert words[0].startswith(QUESTION) and words[-1].endswith("All done!") and len(words) == 2
    assert not any(control in " ".join(words) for control in ("Retry", "Options", "Ready", "Studio", "seed"))
    shades = paper[0].render(scale=2).to_pil().convert("L").crop((0, 0, 800, 160)).getextrema()
    assert shades[0] < 60 and shades[1] == 255, "not dark on white"
    paper[0].render(scale=1.5).to_pil().save(SHOTS / "paper.png")


@browser_only
def test_only_pictures_are_served(fast: Server, tab) -> None:
    import urllib.error
    import urllib.request

    page = open_answered(tab, fast)
    page.wait_for_url("**/?c=*")
    chat, home = page.url.partition("?c=")[2], fast.home
    secret = home / "conversations" / chat / "conversation.json"
    assert secret.is_file()
    picture = list_pictures(page)[0]
    assert urllib.request.urlopen(fast.address + picture, timeout=patience()).status == 200
    folder = picture.rpartition("/")[0]
    for path in (
        f"gradio_api/file={secret}", f"{folder}/../../conversations/{chat}/conversation.json",
        f"{folder}/%2e%2e/%2e%2e/conversations/{chat}/conversation.json", f"{folder}/%252e%252e/%252e%252e/conversations/{chat}/about.json",
        f"gradio_api/file={Path(__file__)}", "gradio_api/file=weights/duogen-sketch/duogen.json", f"conversations/{chat}/conversation.json",
    ):  # fmt: skip
        try:
            found = urllib.request.urlopen(fast.address + path, timeout=patience()).read()
        except urllib.error.HTTPError as error:
            assert error.code in (403, 404), path
        else:
            assert b'"turns"' not in found and b"import" not in found and b"fresh_bias" not in found, path
