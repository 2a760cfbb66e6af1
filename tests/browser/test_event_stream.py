"""No click is lost when Gradio closes its event stream at that moment, and no answer when a proxy does."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.test_chat import open_answered, open_list
from tests.support.browser import Server, browser_only, loaded_pictures, send, wait_until_answered

# Once `hold` is set, what ends a stream comes to the browser only after `release`, as over a slow line.
SLOW_LINE = """
    window.joined = 0;
    const send = window.fetch, released = new Promise(done => { window.release = done; });
    window.fetch = async (target, options) => {
        const response = await send(target, options), address = String(target.url ?? target);
        if (address.includes('queue/join')) window.joined += 1;
        if (!address.includes('queue/data')) return response;
        const line = new TransformStream({ async transform(chunk, stream) {
            if (window.hold && new TextDecoder().decode(chunk).includes('close_stream')) {
                window.closing = true;
                await released;
            }
            stream.enqueue(chunk);
        } });
        return new Response(response.body.pipeThrough(line), response);
    };
"""


@browser_only
def test_an_event_that_joins_while_the_stream_closes_is_heard(fast: Server, tab) -> None:
    page = open_answered(tab, fast)
    page.context.add_init_script(SLOW_LINE)
    page.wait_for_url("**/?c=*")
    page.reload()
    page.wait_for_selector("#talk .bot:has-text('All done!')")
    open_list(page)
    page.evaluate("window.hold = true")
    page.fill("#search :is(input, textarea)", "boat")
    page.wait_for_function("window.closing")
    before = page.evaluate("window.joined")
    page.fill("#search :is(input, textarea)", "no such words")
    page.wait_for_function("before => window.joined > before", arg=before)
    page.evaluate("setTimeout(window.release, 200)")  # once Gradio has read the answer to its request
    expect(page.locator("#chats li")).to_have_count(0)


# Once `cut` is set, the stream ends as if the server had said all.
PROXY_THAT_GIVES_UP = """
    const send = window.fetch;
    window.fetch = async (target, options) => {
        const response = await send(target, options);
        if (!String(target.url ?? target).includes('queue/data')) return response;
        const line = new TransformStream({ transform: (chunk, stream) => window.cut ? stream.terminate() : stream.enqueue(chunk) });
        return new Response(response.body.pipeThrough(line), response);
    };
"""


@browser_only
def test_an_answer_is_shown_whole_though_a_proxy_ends_the_stream(fast: Server, tab) -> None:
    page = tab("about:blank", ready="html")
    page.context.add_init_script(PROXY_THAT_GIVES_UP)
    page.goto(fast.address)
    send(page, "How do I draw a boat slowly?")
    loaded_pictures(page, 2)
    page.evaluate("window.cut = true")
    (fast.home / "go").touch()
    page.wait_for_function("!window.cut")  # the page has loaded itself anew
    page.wait_for_selector("#box textarea")
    wait_until_answered(page)
    loaded_pictures(page, 3)


# What the server tells of the events that join while `lose` is set is lost on the way.
LOSSES = """
    const send = window.fetch, lost = new Set();
    window.lose = false;
    window.fetch = async (target, options) => {
        const response = await send(target, options), address = String(target.url ?? target);
        if (address.includes('queue/join') && window.lose) lost.add((await response.clone().json()).event_id);
        if (!address.includes('queue/data')) return response;
        const words = new TextDecoder(), letters = new TextEncoder();
        const line = new TransformStream({ transform(chunk, stream) {
            const kept = words.decode(chunk).split('\\n\\n').filter(each => ![...lost].some(id => each.includes(id)));
            stream.enqueue(letters.encode(kept.join('\\n\\n')));
        } });
        return new Response(response.body.pipeThrough(line), response);
    };
"""


@browser_only
def test_the_page_loads_itself_anew_where_an_answer_is_lost(fast: Server, tab) -> None:
    page = open_answered(tab, fast)
    page.wait_for_url("**/?c=*")
    page.context.add_init_script(LOSSES)
    page.reload()
    page.wait_for_selector("#talk .bot:has-text('All done!')")
    open_list(page)
    page.evaluate("window.lose = window.was_here = true")
    with page.expect_request("**/queue/join**"):
        page.fill("#search :is(input, textarea)", "no such words")
    page.wait_for_timeout(500)  # the request is answered
    page.evaluate("window.lose = false")
    page.wait_for_function("!window.was_here")
    page.wait_for_selector("#talk .bot:has-text('All done!')")
