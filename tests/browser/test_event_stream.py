"""No click is lost when Gradio closes its event stream at that moment."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.test_chat import open_answered, open_list
from tests.support.browser import Server, browser_only

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
