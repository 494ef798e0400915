// Mouse and keyboard. A press that does not move is a click; one that moves looks around, or changes the grey values.

const STILL = 4; // pixels that a click may move
const WHEEL = 60; // pixels of a wheel for one slice: touch pads send many small ones

export function listenToMouse(sheet, view, { click, describe }) {
  let press = null;
  let wheel = 0;

  sheet.addEventListener("contextmenu", (event) => event.preventDefault());

  sheet.addEventListener("pointerdown", (event) => {
    const place = view.at(event);
    if (!place) return;
    sheet.focus();
    sheet.setPointerCapture(event.pointerId);
    press = { place, x: event.clientX, y: event.clientY, button: event.button, moved: false, window: view.window };
    event.preventDefault();
  });

  sheet.addEventListener("pointermove", (event) => {
    const place = view.at(event);
    if (place) describe(place);
    if (!press) return;
    const [x, y] = [event.clientX - press.x, event.clientY - press.y];
    press.moved ||= Math.hypot(x, y) > STILL;
    if (!press.moved) return;
    if (press.button === 1 || event.shiftKey) view.pan(press.place, event);
    else if (press.button === 2) view.window = changed(press.window, x, y);
    else if (place) view.goTo(place.voxel);
  });

  sheet.addEventListener("pointerup", (event) => {
    const { moved, button, place } = press ?? {};
    press = null;
    if (moved === false && !event.shiftKey && button !== 1) click(place.voxel, button === 0);
  });

  sheet.addEventListener("pointercancel", () => (press = null));

  sheet.addEventListener(
    "wheel",
    (event) => {
      const place = view.at(event);
      if (!place) return;
      event.preventDefault();
      if (event.ctrlKey) {
        view.zoom(Math.exp(-event.deltaY / 400), event);
        return;
      }
      wheel += event.deltaMode ? Math.sign(event.deltaY) * WHEEL : event.deltaY;
      const slices = Math.trunc(wheel / WHEEL);
      wheel -= slices * WHEEL;
      if (slices) view.scroll(place.plane, -slices);
      describe(view.at(event));
    },
    { passive: false },
  );
}

// The window of grey values after a drag: to the right wider, down brighter.
function changed([low, high], x, y) {
  const width = (high - low) * Math.exp(x / 250);
  const centre = (low + high) / 2 - ((high - low) * y) / 300;
  return [centre - width / 2, centre + width / 2];
}

export function listenToKeys(view, isOpen, actions) {
  const inPlane = (across, up) => {
    const steps = [
      [across, up, 0],
      [across, 0, up],
      [0, across, up],
    ][view.large];
    // to the right of the screen is to the left of the patient, but for the sagittal plane
    view.step(view.large === 2 ? steps : [-steps[0], steps[1], steps[2]]);
  };
  const keys = {
    ArrowLeft: () => inPlane(-1, 0),
    ArrowRight: () => inPlane(1, 0),
    ArrowUp: () => inPlane(0, 1),
    ArrowDown: () => inPlane(0, -1),
    PageUp: () => view.scroll(view.large, 1),
    PageDown: () => view.scroll(view.large, -1),
    Enter: (event) => actions.click(view.voxel, !event.shiftKey),
    z: actions.undo,
    r: actions.reset,
    1: () => actions.enlarge(0),
    2: () => actions.enlarge(1),
    3: () => actions.enlarge(2),
    " ": actions.toggle,
    "[": () => actions.setOpacity(actions.opacity() - 10),
    "]": () => actions.setOpacity(actions.opacity() + 10),
    "+": () => view.zoom(1.25),
    "-": () => view.zoom(0.8),
    0: () => view.fit(),
  };
  addEventListener("keydown", (event) => {
    const elsewhere = event.target.closest("dialog, select, input[type=range], button, summary, a");
    const action = keys[event.key] ?? keys[event.key.toLowerCase()];
    if (!action || !isOpen() || event.altKey || event.metaKey) return;
    if (elsewhere && (elsewhere.matches("dialog, select, input") || [" ", "Enter"].includes(event.key))) return;
    if (event.ctrlKey && event.key !== "z") return;
    event.preventDefault();
    action(event);
    actions.describe(null);
  });
}
