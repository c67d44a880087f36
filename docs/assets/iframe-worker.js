// The search runs in a worker, and browsers allow none on pages from disk: there it runs in a hidden frame.
if (location.protocol === "file:") {
  class IFrameWorker extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.appendChild(frame);
      this.window = frame.contentWindow;
      addEventListener("message", (event) => {
        if (event.source === this.window) this.dispatchEvent(new MessageEvent("message", { data: event.data }));
      });
      this.window.postMessage = (data) => parent.postMessage(data, "*");
      const head = `<script>
        postMessage = (data) => parent.postMessage(data, "*");
        importScripts = (...urls) => Promise.all(urls.map((url) => new Promise((done) => {
          const script = document.createElement("script");
          script.src = url;
          script.onload = done;
          document.body.appendChild(script);
        })));
      </script>`;
      this.window.document.open();
      this.window.document.write(`<html><body>${head}<script src="${url}"></script></body></html>`);
      this.window.document.close();
      this.ready = new Promise((done) => frame.addEventListener("load", done));
    }
    postMessage(data) {
      this.ready.then(() => this.window.dispatchEvent(new MessageEvent("message", { data })));
    }
    terminate() {}
  }
  window.Worker = window.IFrameWorker = IFrameWorker;
}
