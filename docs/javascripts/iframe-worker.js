// Browsers start no worker from a file://, so the search of the opened site runs in a hidden frame, with the two calls of
// a worker that mkdocs-material makes: `postMessage` and the event `message`.
if (location.protocol === "file:")
  window.Worker = window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = frame.contentWindow;
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }));
      const script = inside.document.createElement("script");
      script.src = url;
      this.ready = new Promise((loaded, failed) => {
        script.onload = () => loaded(inside);
        script.onerror = () => failed(new Error(`${url} could not be loaded`));
      });
      inside.document.head.append(script);
    }
    postMessage(data) {
      this.ready.then(inside => inside.dispatchEvent(new MessageEvent("message", { data })));
    }
  };
