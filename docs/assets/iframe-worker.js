// Browsers refuse workers on pages that were opened as files. There, a frame of the page runs the worker's script, so that
// the search of the site works without a server. It has what the theme uses of a worker: postMessage, onmessage and events.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const address = new URL(url, location);
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.title = "Search";
      document.body.append(this.frame);
      const inside = this.frame.contentWindow, load = (src) => {
        const script = inside.document.createElement("script");
        script.src = new URL(src, address);
        inside.document.body.append(script);
        return new Promise((resolve) => { script.onload = resolve; });
      };
      inside.importScripts = (...scripts) => scripts.reduce((before, src) => before.then(() => load(src)), Promise.resolve());
      inside.postMessage = (data) => {
        const event = new MessageEvent("message", { data });
        this.dispatchEvent(event);
        if (this.onmessage) this.onmessage(event);
      };
      this.ready = load(address);
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() { this.frame.remove(); }
  };
}
