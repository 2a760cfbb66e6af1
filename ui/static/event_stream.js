// Gradio closes its event stream after the last event. An event that joins at that moment is never heard: the server has closed the stream,
// the browser does not know it yet and opens no other. Its click seems lost. So this notes which events joined and which were heard. While one
// was not, it sends an empty event, for which Gradio opens a stream and hears both.
{
  const send = window.fetch, joined = new Set(), heard = new Set();
  const SOON = 100; // ms: Gradio has noticed an end by then, and an event that joined after it has opened the next stream
  const LATE = 3000; // ms: an event is heard by then, unless it is lost
  let streams = 0;
  const sendEmptyEvent = () => {
    joined.clear();
    trigger('submit');
  };
  const checkEnd = () => {
    if (streams) return;
    if (joined.size) sendEmptyEvent();
    else heard.clear();
  };
  const note = async response => {
    const { event_id: id } = await response.json();
    if (!id || heard.has(id)) return;
    joined.add(id);
    setTimeout(checkEnd, SOON);
    setTimeout(() => { if (joined.has(id)) sendEmptyEvent(); }, LATE);
  };
  const end = () => {
    streams -= 1;
    setTimeout(checkEnd, SOON);
  };
  const hear = response => {
    const decoder = new TextDecoder();
    const passage = new TransformStream({
      transform(chunk, stream) {
        for (const [, id] of decoder.decode(chunk, { stream: true }).matchAll(/"event_id": ?"(\w+)"/g)) {
          heard.add(id);
          joined.delete(id);
        }
        stream.enqueue(chunk);
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
