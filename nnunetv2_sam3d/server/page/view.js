// The three planes: NiiVue draws image and mask, this file adds places, clicks and the mouse's arithmetic.

const { Niivue, NVImage, SLICE_TYPE } = globalThis.niivue;

export const PLANES = [SLICE_TYPE.AXIAL, SLICE_TYPE.CORONAL, SLICE_TYPE.SAGITTAL];
const DEPTH_AXIS = { [SLICE_TYPE.AXIAL]: 2, [SLICE_TYPE.CORONAL]: 1, [SLICE_TYPE.SAGITTAL]: 0 }; // of right, anterior, superior
const SEEN_FROM = 2; // slices away from which a click is still drawn, fainter
const ZOOMS = [0.5, 20];
// Okabe and Ito's colours, which colour-blind people can tell apart. Clicks differ in shape and sign as well.
const MASK_COLOUR = [0x56, 0xb4, 0xe9];
const FOREGROUND_COLOUR = "#F0E442";
const BACKGROUND_COLOUR = "#D55E00";

export class View {
  // canvas: NiiVue's; sheet: a canvas above it, for cross and clicks, which takes the mouse
  constructor(canvas, sheet) {
    this.canvas = canvas;
    this.sheet = sheet;
    this.marks = []; // { voxel: [i, j, k] of the file, foreground, pending }
    this.large = SLICE_TYPE.AXIAL;
    this.viewer = new Niivue({
      interactive: false,
      isRadiologicalConvention: true,
      crosshairWidth: 0, // drawn on the sheet, a pixel wide
      backColor: [0, 0, 0, 1],
      fontColor: [0.85, 0.85, 0.85, 1],
      loadingText: "",
      logLevel: "error",
    });
  }

  async start() {
    await this.viewer.attachToCanvas(this.canvas, false);
    const draw = this.viewer.drawScene.bind(this.viewer);
    this.viewer.drawScene = () => {
      draw();
      this.drawMarks();
    };
    this.viewer.overlayOutlineWidth = 1;
    this.enlarge(this.large);
  }

  // Shows the file, without mask and clicks.
  async show(file) {
    const image = await NVImage.loadFromFile({ file, name: file.name });
    this.clear();
    const mask = image.clone();
    mask.img = new Uint8Array(image.img.length);
    Object.assign(mask.hdr, { datatypeCode: 2, numBitsPerVoxel: 8, scl_slope: 1, scl_inter: 0 });
    const [red, green, blue] = MASK_COLOUR.map((channel) => [0, channel]);
    mask.setColormapLabel({ R: red, G: green, B: blue, A: [0, 255], I: [0, 1], labels: ["", "mask"] });
    this.automaticWindow = [image.cal_min, image.cal_max];
    this.viewer.addVolume(image);
    this.viewer.addVolume(mask);
    this.viewer.scene.pan2Dxyzmm = [0, 0, 0, 1];
    this.viewer.scene.crosshairPos = this.centre([0, 1, 2].map((axis) => image.dimsRAS[axis + 1] >> 1));
  }

  clear() {
    this.marks = [];
    for (const volume of [...this.viewer.volumes]) this.viewer.removeVolume(volume);
    this.viewer.drawScene();
  }

  get image() {
    return this.viewer.volumes[0];
  }

  get shape() {
    return this.image.hdr.dims.slice(1, 4); // i, j, k
  }

  setOpacity(opacity) {
    this.viewer.setOpacity(1, opacity);
  }

  // Writes the mask into the box [[k0, k1], [j0, j1], [i0, i1]], half open, of the file's voxels.
  paint(box, bytes) {
    const mask = this.viewer.volumes[1];
    const [width, height] = this.shape;
    const [[k0, k1], [j0, j1], [i0, i1]] = box;
    let from = 0;
    for (let k = k0; k < k1; k++) {
      for (let j = j0; j < j1; j++, from += i1 - i0) {
        mask.img.set(bytes.subarray(from, from + i1 - i0), (k * height + j) * width + i0);
      }
    }
    this.viewer.updateGLVolume();
  }

  inMask(voxel) {
    return this.viewer.volumes[1].img[this.index(voxel)] > 0;
  }

  index([i, j, k]) {
    const [width, height] = this.shape;
    return (k * height + j) * width + i;
  }

  intensity(voxel) {
    const { scl_slope: slope, scl_inter: intercept } = this.image.hdr;
    return this.image.img[this.index(voxel)] * (slope || 1) + intercept;
  }

  // One plane large on the left, the others beside it.
  enlarge(plane) {
    this.large = plane;
    const [upper, lower] = PLANES.filter((other) => other !== plane);
    this.viewer.setCustomLayout([
      { sliceType: plane, position: [0, 0, 0.62, 1] },
      { sliceType: upper, position: [0.62, 0, 0.38, 0.5] },
      { sliceType: lower, position: [0.62, 0.5, 0.38, 0.5] },
    ]);
  }

  // What is under the mouse: { plane, fraction, voxel: [i, j, k] of the file }, or null beside the image.
  at(event) {
    if (!this.image) return null;
    const [x, y] = this.pixel(event);
    for (let tile = 0; tile < this.viewer.screenSlices.length; tile++) {
      const fraction = this.viewer.screenXY2TextureFrac(x, y, tile, true);
      if (fraction[0] < 0) continue;
      return { plane: this.viewer.screenSlices[tile].axCorSag, tile, fraction, voxel: this.toFile(this.nearest(fraction)) };
    }
    return null;
  }

  pixel(event) {
    const place = this.canvas.getBoundingClientRect();
    const scale = this.canvas.width / place.width;
    return [(event.clientX - place.left) * scale, (event.clientY - place.top) * scale];
  }

  // The crosshair's voxel in the file.
  get voxel() {
    return this.toFile(this.nearest(this.viewer.scene.crosshairPos));
  }

  goTo(voxel) {
    this.moveTo(this.fromFile(voxel));
  }

  // steps: voxels to the right, to the front, to the head
  step(steps) {
    const now = this.nearest(this.viewer.scene.crosshairPos);
    this.moveTo(now.map((place, axis) => place + steps[axis]));
  }

  scroll(plane, slices) {
    const steps = [0, 0, 0];
    steps[DEPTH_AXIS[plane]] = slices;
    this.step(steps);
  }

  moveTo(place) {
    const within = place.map((value, axis) => Math.min(Math.max(value, 0), this.image.dimsRAS[axis + 1] - 1));
    this.viewer.scene.crosshairPos = this.centre(within);
    this.viewer.drawScene();
  }

  // The plane's depth within the volume, for people: 1 to the number of slices.
  slice(plane) {
    const axis = DEPTH_AXIS[plane];
    return [this.nearest(this.viewer.scene.crosshairPos)[axis] + 1, this.image.dimsRAS[axis + 1]];
  }

  // What is under the mouse, or else the crosshair, stays where it is.
  zoom(factor, event) {
    const fixed = (event && this.at(event)?.fraction) ?? this.viewer.scene.crosshairPos;
    const mm = this.viewer.frac2mm(fixed);
    const pan = this.viewer.scene.pan2Dxyzmm;
    const before = pan[3];
    pan[3] = Math.min(Math.max(before * factor, ZOOMS[0]), ZOOMS[1]);
    for (let axis = 0; axis < 3; axis++) pan[axis] += (before - pan[3]) * mm[axis];
    this.viewer.drawScene();
  }

  // Moves what was at a place to the mouse.
  pan(start, event) {
    const [x, y] = this.pixel(event);
    const now = this.viewer.screenXY2TextureFrac(x, y, start.tile, false);
    if (now[0] === -1) return; // beside the plane
    const [from, to] = [start.fraction, now].map((fraction) => this.viewer.frac2mm(fraction));
    const pan = this.viewer.scene.pan2Dxyzmm;
    for (let axis = 0; axis < 3; axis++) pan[axis] += pan[3] * (to[axis] - from[axis]);
    this.viewer.drawScene();
  }

  fit() {
    this.viewer.scene.pan2Dxyzmm = [0, 0, 0, 1];
    this.viewer.drawScene();
  }

  get window() {
    return [this.image.cal_min, this.image.cal_max];
  }

  // Intensities that are shown as black and as white.
  set window([low, high]) {
    [this.image.cal_min, this.image.cal_max] = [low, Math.max(high, low + 1e-6)];
    this.viewer.updateGLVolume();
  }

  // Voxels of NiiVue, which turns all images to right, anterior, superior, and voxels of the file.
  toFile(place) {
    const voxel = [0, 0, 0];
    this.image.permRAS.forEach((axis, index) => {
      const own = Math.abs(axis) - 1;
      voxel[own] = axis > 0 ? place[index] : this.image.dimsRAS[index + 1] - 1 - place[index];
    });
    return voxel;
  }

  fromFile(voxel) {
    return this.image.permRAS.map((axis, index) => {
      const own = Math.abs(axis) - 1;
      return axis > 0 ? voxel[own] : this.image.dimsRAS[index + 1] - 1 - voxel[own];
    });
  }

  nearest(fraction) {
    return [0, 1, 2].map((axis) => {
      const length = this.image.dimsRAS[axis + 1];
      return Math.min(Math.max(Math.floor(fraction[axis] * length), 0), length - 1);
    });
  }

  centre(place) {
    return place.map((value, axis) => (value + 0.5) / this.image.dimsRAS[axis + 1]);
  }

  drawMarks() {
    const { sheet, canvas } = this;
    if (sheet.width !== canvas.width || sheet.height !== canvas.height) {
      [sheet.width, sheet.height] = [canvas.width, canvas.height];
    }
    const pen = sheet.getContext("2d");
    pen.clearRect(0, 0, sheet.width, sheet.height);
    if (!this.image) return;
    const scale = canvas.width / canvas.getBoundingClientRect().width;
    const here = this.nearest(this.viewer.scene.crosshairPos);
    for (const tile of this.viewer.screenSlices) {
      const [left, top, width, height] = tile.leftTopWidthHeight;
      pen.save();
      pen.beginPath();
      pen.rect(Math.min(left, left + width), top, Math.abs(width), height);
      pen.clip();
      drawCross(pen, this.onScreen(here, tile), scale);
      for (const mark of this.marks) {
        const place = this.fromFile(mark.voxel);
        const axis = DEPTH_AXIS[tile.axCorSag];
        const away = Math.abs(place[axis] - here[axis]);
        if (away > SEEN_FROM) continue;
        pen.globalAlpha = away ? 0.5 / away : 1;
        drawMark(pen, this.onScreen(place, tile), mark, scale);
      }
      pen.restore();
    }
  }

  onScreen(place, tile) {
    const mm = this.viewer.frac2mm(this.centre(place));
    const [across, up] = [0, 1, 2].filter((axis) => axis !== DEPTH_AXIS[tile.axCorSag]).map((axis) => mm[axis]);
    let [left, top, width, height] = tile.leftTopWidthHeight;
    const x = (across - tile.leftTopMM[0]) / tile.fovMM[0];
    const y = (up - tile.leftTopMM[1]) / tile.fovMM[1];
    return [left + x * width, top + (1 - y) * height];
  }
}

// Four lines that leave the middle free.
function drawCross(pen, [x, y], scale) {
  const [gap, far] = [14 * scale, 1e5];
  pen.lineWidth = scale;
  pen.strokeStyle = "rgba(255, 255, 255, 0.55)";
  pen.beginPath();
  for (const [across, down] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
    pen.moveTo(x + across * gap, y + down * gap);
    pen.lineTo(x + across * far, y + down * far);
  }
  pen.stroke();
}

// A disc with a plus in the structure, a square with a minus outside of it; hollow until the server has answered.
function drawMark(pen, [x, y], { foreground, pending }, scale) {
  const size = 7 * scale;
  pen.beginPath();
  if (foreground) pen.arc(x, y, size, 0, 2 * Math.PI);
  else pen.rect(x - size, y - size, 2 * size, 2 * size);
  pen.fillStyle = foreground ? FOREGROUND_COLOUR : BACKGROUND_COLOUR;
  if (!pending) pen.fill();
  pen.lineWidth = 1.5 * scale;
  pen.strokeStyle = pending ? pen.fillStyle : "#000000";
  pen.stroke();
  pen.strokeStyle = pending ? "#ffffff" : "#000000";
  pen.lineWidth = 2 * scale;
  pen.beginPath();
  pen.moveTo(x - size / 2, y);
  pen.lineTo(x + size / 2, y);
  if (foreground) {
    pen.moveTo(x, y - size / 2);
    pen.lineTo(x, y + size / 2);
  }
  pen.stroke();
}
