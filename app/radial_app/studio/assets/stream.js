// The queue as it changes, over one connection for all tabs of a browser: whoever holds the lock reads the stream and
// tells the others. Browsers give a server six connections.
const channel = new BroadcastChannel("radial-queue");
let source = null;
let last = null;
let tell = () => {};

function told(message) {
  last = message;
  tell(message);
}

function read() {
  source?.close();
  source = new EventSource("/v1/events");
  source.addEventListener("queue", (event) => {
    const message = { queue: JSON.parse(event.data) };
    channel.postMessage(message);
    told(message);
  });
  source.onerror = () => {
    const message = { queue: last?.queue ?? null, lost: true };
    channel.postMessage(message);
    told(message);
    // The browser tries again by itself, unless the server refused.
    if (source.readyState === EventSource.CLOSED) setTimeout(read, 2000);
  };
}

export function startStream(listener) {
  tell = listener;
  channel.onmessage = ({ data }) => {
    if (data === "hello") { if (source && last) channel.postMessage(last); } else if (!source) told(data);
  };
  channel.postMessage("hello");
  // Where pages come over plain http from another machine there are no locks: each tab reads while it is seen.
  if (navigator.locks) return navigator.locks.request("radial-stream", () => new Promise(() => read()));
  read();
  document.addEventListener("visibilitychange", () => (document.hidden ? (source.close(), (source = null)) : read()));
}
