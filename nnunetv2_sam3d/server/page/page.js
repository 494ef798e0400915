// The page: what the buttons, the mouse and the keyboard do. Words and numbers come from the server, the planes from view.js.

import { Server } from "./server.js";
import { listenToMouse, listenToKeys } from "./input.js";
import { View } from "./view.js";

const by = (id) => document.getElementById(id);
// Grey values of CT in Hounsfield units, lowest and highest.
const CT_WINDOWS = { "soft tissue": [-160, 240], lung: [-1350, 150], bone: [-450, 1050], brain: [0, 80] };
const NAMES_OF_PLANES = ["axial", "coronal", "sagittal"];

const server = new Server(askKey);
const view = new View(by("canvas"), by("sheet"));
let model = null; // what is served
let files = []; // of the image that is open, to give them to the server again after a lost lease
let clicks = []; // [{ voxel, foreground }] as the server has them
let hidden = false; // the result
let work = Promise.resolve(); // one request after the other
let waiting = 0;

// ---- messages

let fading = 0;

function say(sentence, good = false) {
  clearTimeout(fading);
  if (good) fading = setTimeout(() => say(""), 5000);
  by("message-text").textContent = sentence;
  by("message").classList.toggle("good", good);
  by("message").hidden = !sentence;
}

async function askKey(reason) {
  by("key-reason").textContent = reason;
  by("key").value = "";
  by("key-dialog").showModal();
  await new Promise((resolve) => by("key-dialog").addEventListener("close", resolve, { once: true }));
  return by("key").value;
}

// Runs after what runs already. While it does, the page says what it waits for, and since when.
function queue(text, task) {
  waiting += 1;
  work = work.then(async () => {
    const start = Date.now();
    const show = () => {
      const seconds = Math.round((Date.now() - start) / 1000);
      by("busy-text").textContent = seconds > 1 ? `${text} ${seconds} s` : text;
    };
    show();
    by("busy").hidden = false;
    const clock = setInterval(show, 1000);
    try {
      await task();
    } catch (error) {
      say(error.message);
    } finally {
      clearInterval(clock);
      waiting -= 1;
      by("busy").hidden = true;
      refresh();
    }
  });
  return work;
}

// The same for requests about the image.
function ask(text, request) {
  return queue(text, async () => {
    say("");
    take(await inSession(request));
  });
}

// A request; if the session has ended, another one begins with image and clicks, and the request is made again.
async function inSession(request) {
  try {
    return await request();
  } catch (error) {
    if (error.status !== 410) throw error;
    const before = clicks;
    server.lost();
    await sendImage(true);
    if (before.length) take(await server.clicks(before));
    return request();
  }
}

// ---- image

async function open(chosen) {
  const wanted = [...chosen].sort((one, other) => (one.name < other.name ? -1 : 1));
  if (!wanted.length) return;
  say(waiting ? "The server is at work; open the next image when it has answered." : "");
  if (waiting) return;
  if (wanted.length !== model.channels.length) {
    const each = model.channels.join(", ");
    say(
      model.channels.length === 1
        ? "Give one image: the model takes one channel."
        : `Give the ${model.channels.length} files of one image together: the model takes the channels ${each}.`,
    );
    return;
  }
  await queue("Opening the image", async () => {
    close();
    try {
      await view.show(wanted[0]);
    } catch {
      close();
      throw new Error(`${wanted[0].name} cannot be shown: it is no NIfTI image, or it is damaged.`);
    }
    by("empty").hidden = true;
    by("image").textContent = `${wanted[0].name}, ${view.shape.join(" × ")} voxels`;
    chooseWindow();
    files = wanted;
  });
  if (!files.length) return;
  await queue("Segmenting the image", async () => {
    try {
      await sendImage();
    } catch (error) {
      close();
      throw error;
    }
  });
  by("sheet").focus();
}

function close() {
  files = [];
  clicks = [];
  view.clear();
  by("empty").hidden = false;
  by("image").textContent = "NIfTI, or drop it on this page";
  refresh();
}

// again: the page shows the image already
async function sendImage(again = false) {
  await server.claim();
  for (const [channel, file] of files.entries()) {
    const result = await server.image(file, file.name, channel);
    if (result.complete) {
      view.setOpacity(opacity());
      take(result);
      if (result.middle && !again) view.goTo(result.middle);
      describe(null);
      say(result.sentences.join(" "));
    }
  }
}

// ---- result

// What the server answered: the box of the mask that changed, and its clicks.
function take(result) {
  if (!result.complete) return;
  clicks = result.clicks;
  view.marks = [...clicks];
  if (result.box) view.paint(result.box, result.bytes);
  else view.viewer.drawScene();
  by("volume").textContent = millilitres(result.target_ml);
}

function millilitres(volume) {
  return volume ? `${volume.toPrecision(3).replace(/e.*/, "")} ml` : "not found";
}

function click(voxel, foreground) {
  if (!files.length) return;
  view.goTo(voxel);
  view.marks.push({ voxel, foreground, pending: true });
  view.drawMarks();
  ask("Segmenting with the click", () => server.clicks([{ voxel, foreground }])).then(() => {
    view.marks = view.marks.filter((mark) => mark.pending !== true || mark.voxel !== voxel);
    view.drawMarks();
  });
}

function undo() {
  if (clicks.length && !waiting) ask("Taking the click back", () => server.undo());
}

function reset() {
  if (clicks.length && !waiting) ask("Taking all clicks back", () => server.reset());
}

function save(path) {
  if (files.length) queue("Saving", async () => say(`${await inSession(() => server.download(path))} is in your downloads.`, true));
}

// ---- view

function opacity() {
  return hidden ? 0 : by("opacity").value / 100;
}

function setOpacity(value) {
  hidden = false;
  by("opacity").value = value;
  if (files.length) view.setOpacity(opacity());
}

function toggle() {
  hidden = !hidden;
  if (files.length) view.setOpacity(opacity());
}

function chooseWindow() {
  const chosen = CT_WINDOWS[by("window").value];
  view.window = chosen ?? view.automaticWindow;
}

function enlarge(plane) {
  view.enlarge(plane);
}

// Buttons and lists for the state that the page is in.
function refresh() {
  const idle = !waiting && files.length > 0;
  by("undo").disabled = by("reset").disabled = !idle || !clicks.length;
  by("mask").disabled = by("save-clicks").disabled = !idle;
  by("open").classList.toggle("waiting", waiting > 0);
  by("count").textContent = clicks.length ? `${clicks.length}` : "";
  if (!files.length) by("volume").textContent = "";
  by("clicks").replaceChildren(...clicks.map(entry));
  by("clicks").lastElementChild?.scrollIntoView({ block: "nearest" });
}

function entry({ voxel, foreground }, index) {
  const button = document.createElement("button");
  const mark = document.createElement("span");
  mark.className = `mark ${foreground ? "inside" : "outside"}`;
  mark.textContent = foreground ? "+" : "−";
  button.append(mark, `voxel ${voxel.join(", ")}`);
  button.title = "Go there";
  button.setAttribute("aria-label", `Click ${index + 1}, ${foreground ? "inside" : "outside"}, voxel ${voxel.join(", ")}`);
  button.addEventListener("click", () => view.goTo(voxel));
  const item = document.createElement("li");
  item.append(button);
  return item;
}

function describe(place) {
  const { voxel } = place ?? view;
  const planes = NAMES_OF_PLANES.map((name, plane) => `${name} ${view.slice(plane).join("/")}`);
  const grey = Number(view.intensity(voxel).toPrecision(4));
  const here = [`voxel ${voxel.join(", ")}`, `value ${grey}`, ...(view.inMask(voxel) ? [model.target] : [])];
  by("status").textContent = [...planes, ...here].join("  ·  ");
}

// ---- start

async function start() {
  try {
    await view.start();
  } catch {
    by("empty-more").textContent = "";
    say("This browser cannot draw images here: it has no WebGL 2. Turn on hardware acceleration, or take another browser.");
    return;
  }
  await queue("Asking the server", async () => {
    model = await server.json("page/model");
  });
  if (!model) return;
  by("model").textContent = model.name;
  by("target").textContent = model.target;
  by("empty-more").textContent =
    model.channels.length > 1 ? `its ${model.channels.length} files together: ${model.channels.join(", ")}` : "";
  by("result-name").textContent = model.target;
  const windows = model.channels[0].toUpperCase() === "CT" ? ["soft tissue", ...Object.keys(CT_WINDOWS).slice(1)] : [];
  by("window").replaceChildren(...[...windows, "automatic"].map((name) => new Option(name)));
  say(model.sentences.join(" "));
  listenToMouse(by("sheet"), view, { click, describe });
  const actions = { click, undo, reset, toggle, setOpacity, enlarge, describe, opacity: () => Number(by("opacity").value) };
  listenToKeys(view, () => files.length > 0, actions);
  by("file").addEventListener("change", () => {
    open(by("file").files);
    by("file").value = "";
  });
  by("undo").addEventListener("click", undo);
  by("reset").addEventListener("click", reset);
  by("mask").addEventListener("click", () => save("page/mask"));
  by("save-clicks").addEventListener("click", () => save("page/saved-clicks"));
  by("opacity").addEventListener("input", () => setOpacity(by("opacity").value));
  by("window").addEventListener("change", () => files.length && chooseWindow());
  by("message-close").addEventListener("click", () => say(""));
  dropping();
  document.body.dataset.ready = "yes";
}

// Files that are dragged onto the page.
function dropping() {
  const over = (shown) => (event) => {
    event.preventDefault();
    by("drop").hidden = !shown;
  };
  addEventListener("dragover", over(true));
  addEventListener("dragleave", (event) => event.relatedTarget || over(false)(event));
  addEventListener("drop", (event) => {
    over(false)(event);
    open(event.dataTransfer.files);
  });
}

start();
