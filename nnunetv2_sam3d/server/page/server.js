// What the page says to the server: the lease, the key, and errors as sentences.

const HEARTBEAT_MS = 15000;
const KEY = "nnunetv2_sam3d key"; // in the tab's storage: gone when the tab is closed

// An answer that is no success; its message is the server's sentence.
export class ServerError extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

export class Server {
  // askKey: async (sentence) -> the key that the user typed
  constructor(askKey) {
    this.askKey = askKey;
    this.lease = null;
    this.key = sessionStorage.getItem(KEY);
    setInterval(() => this.heartbeat(), HEARTBEAT_MS);
    addEventListener("pagehide", () => this.release());
  }

  // The answer to a request. A missing or wrong key is asked for until the server takes it.
  async fetch(path, options = {}) {
    for (;;) {
      const response = await this.send(path, options);
      if (response.ok) return response;
      const sentence = await sentenceOf(response);
      if (response.status !== 401) throw new ServerError(response.status, sentence);
      this.key = await this.askKey(sentence);
      sessionStorage.setItem(KEY, this.key);
    }
  }

  async send(path, options) {
    const headers = { ...options.headers };
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    if (this.lease) headers["X-Lease-Token"] = this.lease;
    try {
      return await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
    } catch {
      throw new ServerError(0, "The server does not answer. Is nnUNetv2_sam3d serve still running?");
    }
  }

  async json(path, options) {
    return (await this.fetch(path, options)).json();
  }

  // Takes one of the server's places, if this page has none.
  async claim() {
    if (this.lease) return;
    this.lease = (await this.json("claim", { method: "POST" })).lease_token;
  }

  // The server has forgotten this page: its lease is over.
  lost() {
    this.lease = null;
  }

  release() {
    if (!this.lease) return;
    this.send("release", { method: "POST", keepalive: true }).catch(() => {});
    this.lease = null;
  }

  heartbeat() {
    if (this.lease) this.send("heartbeat", { method: "POST" }).catch(() => {}); // the next request says what is wrong
  }

  // One channel of the image; the last one starts the segmentation.
  image(file, name, channel) {
    const query = new URLSearchParams({ name, channel });
    return this.result(`page/image?${query}`, { body: file });
  }

  // voxel: [i, j, k] of the file
  clicks(clicks) {
    const headers = { "Content-Type": "application/json" };
    return this.result("page/clicks", { headers, body: JSON.stringify({ clicks }) });
  }

  undo() {
    return this.result("page/undo");
  }

  reset() {
    return this.result("page/reset");
  }

  // { ...what the server says, bytes: of the mask in the changed box }
  async result(path, options = {}) {
    const response = await this.fetch(path, { method: "POST", ...options });
    const body = new Uint8Array(await response.arrayBuffer());
    const end = body.indexOf(10); // a line of JSON, then the mask
    return { ...JSON.parse(new TextDecoder().decode(body.subarray(0, end))), bytes: body.subarray(end + 1) };
  }

  // Saves a file of the server's on the user's disk.
  async download(path) {
    const response = await this.fetch(path);
    const name = /filename\*=UTF-8''([^;]+)/.exec(response.headers.get("Content-Disposition") ?? "");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await response.blob());
    link.download = name ? decodeURIComponent(name[1]) : "download";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    return link.download;
  }
}

async function sentenceOf(response) {
  try {
    const { detail } = await response.json();
    if (typeof detail === "string") return detail;
  } catch {
    // no JSON: something between the page and the server answered
  }
  return `The server answered ${response.status} ${response.statusText}, without saying why.`;
}
