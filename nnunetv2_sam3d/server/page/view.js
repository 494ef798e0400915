// The three planes: NiiVue draws image and labels, this file adds places, clicks and the mouse's arithmetic.

const { Niivue, NVImage, SLICE_TYPE } = globalThis.niivue;

export const PLANES = [SLICE_TYPE.AXIAL, SLICE_TYPE.CORONAL, SLICE_TYPE.SAGITTAL];
const DEPTH_AXIS = { [SLICE_TYPE.AXIAL]: 2, [SLICE_TYPE.CORONAL]: 1, [SLICE_TYPE.SAGITTAL]: 0 }; // of right, anterior, superior
const SEEN_FROM = 2.5; // slices away from which a click is still drawn, fainter
const ZOOMS = [0.5, 20];
// Okabe and Ito's colours, which colour-blind people can tell apart. Clicks differ in shape and sign as well.
export const TARGET_COLOUR = "#56B4E9";
export const OTHER_COLOURS = ["#CC79A7", "#009E73", "#E69F00", "#0072B2", "#F0E442"];
const FOREGROUND_COLOUR = "#F0E442";
const BACKGROUND_COLOUR = "#D55E00";

export class View {
  // canvas: NiiVue's; sheet: a canvas above it, for the clicks, which takes the mouse
  constructor(canvas, sheet) {
    this.canvas = canvas;
    this.sheet = sheet;
    this.marks = []; // { voxel: [i, j, k] of the file, foreground, pending }
    this.large = SLICE_TYPE.AXIAL;
    this.viewer = new Niivue({
      interactive: false,
      isRadiologicalConvention: true,
      crosshairColor: [1, 1, 1, 0.45],
      crosshairGap: 12,
      backColor: [0, 0, 0, 1],
      fontColor: [0.85, 0.85, 0.85, 1],
      isNearestInterpolation: true, // voxels as they are
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
    this.enlarge(this.large);
  }

  // Shows the file, without labels and clicks.
  async show(file) {
    const image = await NVImage.loadFromFile({ file, name: file.name, limitFrames4D: 1 });
    this.clear();
    const labels = image.clone();
    labels.img = new Uint8Array(image.img.length);
    Object.assign(labels.hdr, { datatypeCode: 2, numBitsPerVoxel: 8, scl_slope: 1, scl_inter: 0, cal_min: 0, cal_max: 0 });
    this.automaticWindow = [image.cal_min, image.cal_max];
    this.viewer.addVolume(image);
    this.viewer.addVolume(labels);
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

  // names: [{ value, name, colour }]
  colour(names, opacity) {
    const labels = this.viewer.volumes[1];
    const table = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
    for (const { value, name, colour } of names) {
      const channels = [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
      ["R", "G", "B"].forEach((channel, index) => table[channel].push(channels[index]));
      table.A.push(255);
      table.I.push(value);
      table.labels.push(name);
    }
    labels.setColormapLabel(table);
    this.setOpacity(opacity);
  }

  setOpacity(opacity) {
    this.viewer.setOpacity(1, opacity);
  }

  // Writes labels into the box [[k0, k1], [j0, j1], [i0, i1]], half open, of the file's voxels.
  paint(box, bytes) {
    const labels = this.viewer.volumes[1];
    const [width, height] = this.shape;
    const [[k0, k1], [j0, j1], [i0, i1]] = box;
    let from = 0;
    for (let k = k0; k < k1; k++) {
      for (let j = j0; j < j1; j++, from += i1 - i0) {
        labels.img.set(bytes.subarray(from, from + i1 - i0), (k * height + j) * width + i0);
      }
    }
    this.viewer.updateGLVolume();
  }

  label(voxel) {
    const [width, height] = this.shape;
    return this.viewer.volumes[1].img[(voxel[2] * height + voxel[1]) * width + voxel[0]];
  }

  intensity(voxel) {
    const [width, height] = this.shape;
    const { scl_slope: slope, scl_inter: intercept } = this.image.hdr;
    return this.image.img[(voxel[2] * height + voxel[1]) * width + voxel[0]] * (slope || 1) + intercept;
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

  zoom(factor, event) {
    const before = event && this.at(event);
    const pan = this.viewer.scene.pan2Dxyzmm;
    pan[3] = Math.min(Math.max(pan[3] * factor, ZOOMS[0]), ZOOMS[1]);
    this.viewer.drawScene();
    if (before) this.pan(before, event); // what is under the mouse stays there
  }

  // Moves what was at a place under the mouse.
  pan(start, event) {
    const [x, y] = this.pixel(event);
    const now = this.viewer.screenXY2TextureFrac(x, y, start.tile, false);
    const [from, to] = [start.fraction, now].map((fraction) => this.viewer.frac2mm(fraction));
    const pan = this.viewer.scene.pan2Dxyzmm;
    for (let axis = 0; axis < 3; axis++) pan[axis] += to[axis] - from[axis];
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
    if (sheet.width !== canvas.width || sheet.height !== canvas.height) [sheet.width, sheet.height] = [canvas.width, canvas.height];
    const pen = sheet.getContext("2d");
    pen.clearRect(0, 0, sheet.width, sheet.height);
    if (!this.image) return;
    const scale = canvas.width / canvas.getBoundingClientRect().width;
    for (const mark of this.marks) {
      const place = this.fromFile(mark.voxel);
      for (const tile of this.viewer.screenSlices) {
        const axis = DEPTH_AXIS[tile.axCorSag];
        const away = Math.abs(place[axis] - this.nearest(this.viewer.scene.crosshairPos)[axis]);
        if (away > SEEN_FROM) continue;
        pen.globalAlpha = away ? 0.5 / away : 1;
        drawMark(pen, this.onScreen(place, tile), mark, scale);
      }
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
