// Gradio closes its event stream after the last event. An event that joins at that moment is never heard: the server has closed the stream,
// the browser does not know it yet and opens no other. Its click seems lost. So this notes which events joined and which were heard. While one
// was not, it sends an empty event, for which Gradio opens a stream and hears both. If the empty event is heard and the other one is not, that
// one's answer is lost: the server tells of events in their order. Then the page loads itself anew, and shows how things stand.
{
  const send = window.fetch, joined = new Map(), heard = new Set(); // when each event joined
  const SOON = 100; // ms: Gradio has noticed an end by then, and an event that joined after it has opened the next stream
  const LATE = 3000; // ms: an event is heard by then, unless it is lost
  const LAST_WORDS = 'close_stream'; // with which the server ends a stream
  let streams = 0;
  const sendEmptyEvent = () => trigger('submit');
  const checkLost = time => { // when an event joined that was heard
    if ([...joined.values()].some(earlier => earlier < time - LATE + SOON)) window.location.reload();
  };
  const checkEnd = () => {
    if (streams) return;
    if (joined.size) sendEmptyEvent();
    else heard.clear();
  };
  const note = async response => {
    const { event_id: id } = await response.json();
    if (!id) return;
    if (heard.has(id)) return checkLost(performance.now());
    joined.set(id, performance.now());
    setTimeout(checkEnd, SOON);
    setTimeout(() => { if (joined.has(id)) sendEmptyEvent(); }, LATE);
  };
  const end = () => {
    streams -= 1;
    setTimeout(checkEnd, SOON);
  };
  const hear = response => {
    const decoder = new TextDecoder();
    let last = '';
    const passage = new TransformStream({
      transform(chunk, stream) {
        const words = decoder.decode(chunk, { stream: true });
        for (const [, id] of words.matchAll(/"event_id": ?"(\w+)"/g)) {
          heard.add(id);
          const time = joined.get(id);
          joined.delete(id);
          if (time) checkLost(time);
        }
        last = (last + words).slice(-LAST_WORDS.length - 20);
        stream.enqueue(chunk);
      },
      flush(stream) { // a proxy that gives up ends the stream as if all were said; Gradio would wait for ever, and knows what to do with an error
        if (!last.includes(LAST_WORDS)) stream.error(new TypeError('The event stream has ended too early.'));
      },
    });
    response.body.pipeTo(passage.writable).catch(() => {}).finally(end);
    return new Response(passage.readable, response);
  };
  window.fetch = async (target, options) => {
    const address = String(target.url ?? target), listens = address.includes('/gradio_api/queue/data');
    if (listens) streams += 1;
    if (address.includes('/gradio_api/queue/join')) document.dispatchEvent(new CustomEvent('joining', { detail: String(options?.body) }));
    try {
      const response = await send(target, options);
      if (response.ok && address.includes('/gradio_api/queue/join')) note(response.clone()).catch(() => {});
      if (!listens) return response;
      if (response.body) return hear(response);
      end();
      return response;
    } catch (error) {
      if (listens) end();
      throw error;
    }
  };
}
