// Gradio closes its event stream after the last event. An event that joins at that moment is never heard: the server has closed the stream,
// the browser does not know it yet and opens no other. Its click seems lost. So this notes which events were heard; when the stream ends and
// one was not, it sends an empty event, for which Gradio opens a stream and hears both.
{
  const send = window.fetch, unheard = new Set();
  let streams = 0;
  const note = async response => {
    const { event_id: id } = await response.json();
    if (id) unheard.add(id);
  };
  const end = () => {
    streams -= 1;
    setTimeout(() => { // until Gradio has noticed the end too, and an event that joins after it has opened the next stream
      if (streams || !unheard.size) return;
      unheard.clear();
      trigger('submit');
    }, 100);
  };
  const hear = response => {
    const decoder = new TextDecoder();
    const passage = new TransformStream({
      transform(chunk, stream) {
        const text = decoder.decode(chunk, { stream: true });
        for (const id of unheard) if (text.includes(id)) unheard.delete(id);
        stream.enqueue(chunk);
      },
    });
    response.body.pipeTo(passage.writable).catch(() => {}).finally(end);
    return new Response(passage.readable, response);
  };
  window.fetch = async (target, options) => {
    const address = String(target.url ?? target), listens = address.includes('/gradio_api/queue/data');
    if (listens) streams += 1;
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
