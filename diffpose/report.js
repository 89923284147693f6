// The pictures of a report: two grey images, compared on a canvas in seven ways.
"use strict";
document.documentElement.classList.add("scripted");
const say = text => {
  const at = document.querySelector(".said");
  at.textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { at.textContent = ""; }, 1600);
};
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
const LEAST = 640; // pixels of a canvas: small pictures are enlarged, smoothly
const MODES = { // name of the slider, where it begins, what is seen
  wipe: ["Boundary", 50, "X-ray on the left, DRR on the right. Drag the boundary."],
  flicker: ["Pace", 40, "X-ray and DRR in turn: what jumps does not fit."],
  checker: ["Squares", 40, "Squares of the X-ray and of the DRR in turn: contours should run on from one to the next."],
  difference: ["Strength", 35, "X-ray less DRR, each by its mean and its spread: orange where the X-ray is stronger, blue where the DRR is."],
  edges: ["How many edges", 45, "Edges of the DRR, green, on the X-ray."],
  xray: ["", 0, "The X-ray alone."],
  drr: ["", 0, "The DRR alone."],
};

class Viewer {
  constructor(box) {
    this.box = box;
    this.stage = box.querySelector(".stage");
    this.canvas = box.querySelector("canvas");
    this.pen = this.canvas.getContext("2d", { willReadFrequently: true });
    this.dial = box.querySelector("input[type=range]");
    this.kept = Object.fromEntries(Object.entries(MODES).map(([mode, [, value]]) => [mode, value]));
    this.shown = true; // of flicker: is it the X-ray's turn?
    box.querySelectorAll(".modes input").forEach(x => x.addEventListener("change", () => this.choose(x.value)));
    this.dial.addEventListener("input", () => { this.kept[this.mode] = +this.dial.value; this.draw(); });
    box.querySelector("select").addEventListener("change", event => { this.drr = this.grey[event.target.value]; this.draw(); });
    box.querySelector("[data-invert]").addEventListener("change", event => { this.dark = event.target.checked; this.draw(); });
    for (const x of box.querySelectorAll("[data-toggle]")) {
      const mark = box.querySelector(`[data-mark="${x.dataset.toggle}"]`);
      const put = () => { if (mark) mark.style.display = x.checked ? "" : "none"; };
      x.addEventListener("change", put);
      put();
    }
    for (const kind of ["pointerdown", "pointermove"]) this.stage.addEventListener(kind, event => this.drag(event));
    this.load();
  }

  async load() {
    const images = [...this.box.querySelectorAll("img[data-role]")];
    await Promise.all(images.map(image => image.decode()));
    const { naturalWidth: w, naturalHeight: h } = images[0];
    const scale = Math.max(1, LEAST / Math.min(w, h));
    this.width = this.canvas.width = Math.round(scale * w);
    this.height = this.canvas.height = Math.round(scale * h);
    const counted = this.box.querySelector(".counted");
    this.inside = this.pixels(() => {
      this.pen.fillStyle = "#fff";
      this.pen.scale(this.width / w, this.height / h);
      this.pen.fill(counted ? new Path2D(counted.getAttribute("d")) : new Path2D(`M0,0H${w}V${h}H0Z`), "evenodd");
    });
    this.grey = Object.fromEntries(images.map(image => [image.dataset.role, this.pixels(() => this.pen.drawImage(image, 0, 0, this.width, this.height))]));
    this.drr = this.grey.after;
    this.edges = new Map();
    this.choose("wipe");
    this.box.dataset.ready = "yes";
  }

  pixels(draw) { // what is drawn, as grey values 0 to 255
    this.pen.save();
    this.pen.fillStyle = "#000";
    this.pen.fillRect(0, 0, this.width, this.height);
    this.pen.imageSmoothingQuality = "high";
    draw();
    this.pen.restore();
    const { data } = this.pen.getImageData(0, 0, this.width, this.height);
    return Float32Array.from({ length: data.length / 4 }, (_, k) => data[4 * k]);
  }

  choose(mode) {
    this.mode = this.stage.dataset.mode = mode;
    const [name, , says] = MODES[mode];
    this.box.querySelector(".dial").style.visibility = name ? "" : "hidden";
    this.box.querySelector("[data-dial]").textContent = name;
    this.box.querySelector("[data-says]").textContent = says;
    this.dial.value = this.kept[mode];
    clearTimeout(this.timer);
    if (mode === "flicker") this.turn();
    this.draw();
  }

  turn() { // at most three changes a second
    if (this.mode !== "flicker") return;
    if (!document.hidden) { this.shown = !this.shown; this.draw(); }
    this.timer = setTimeout(() => this.turn(), (still ? 1500 : 340) + 12 * (100 - this.kept.flicker));
  }

  drag(event) {
    if (this.mode !== "wipe" || !(event.buttons & 1)) return;
    const { left, width } = this.stage.getBoundingClientRect();
    this.dial.value = this.kept.wipe = Math.max(0, Math.min(100, 100 * (event.clientX - left) / width));
    this.draw();
  }

  matched() { // the DRR with the X-ray's mean and spread, of the pixels that counted
    const of = values => {
      let n = 0, sum = 0, square = 0;
      values.forEach((v, k) => { if (this.inside[k] > 127) { n++; sum += v; square += v * v; } });
      const mean = sum / n;
      return [mean, Math.sqrt(Math.max(1e-6, square / n - mean * mean))];
    };
    const [a, s] = of(this.grey.xray), [b, t] = of(this.drr);
    return this.drr.map(v => a + (v - b) * s / t);
  }

  strength() { // of the DRR's edges: thin, none outside the pixels that counted
    if (this.edges.has(this.drr)) return this.edges.get(this.drr);
    const { width: w, height: h } = this, n = w * h, blur = (from, step, size) => {
      const to = new Float32Array(n), r = Math.max(1, Math.round(Math.min(w, h) / 300));
      for (let k = 0; k < n; k++) {
        const at = step === 1 ? k % w : Math.floor(k / w);
        let sum = 0, count = 0;
        for (let d = -r; d <= r; d++) if (at + d >= 0 && at + d < size) { sum += from[k + d * step]; count++; }
        to[k] = sum / count;
      }
      return to;
    };
    let smooth = this.drr;
    for (let k = 0; k < 2; k++) smooth = blur(blur(smooth, 1, w), w, h);
    const gx = new Float32Array(n), gy = new Float32Array(n), size = new Float32Array(n), thin = new Float32Array(n);
    for (let y = 1; y < h - 1; y++) for (let x = 1; x < w - 1; x++) {
      const k = y * w + x;
      gx[k] = smooth[k + 1] - smooth[k - 1];
      gy[k] = smooth[k + w] - smooth[k - w];
      size[k] = Math.hypot(gx[k], gy[k]);
    }
    for (let y = 2; y < h - 2; y++) for (let x = 2; x < w - 2; x++) {
      const k = y * w + x, near = Math.abs(gx[k]) > 2 * Math.abs(gy[k]) ? 1 : Math.abs(gy[k]) > 2 * Math.abs(gx[k]) ? w : gx[k] * gy[k] > 0 ? w + 1 : w - 1;
      if (this.inside[k] > 127 && size[k] >= size[k - near] && size[k] > size[k + near]) thin[k] = size[k];
    }
    const found = { thin, ranks: thin.filter(v => v > 0.02).sort() };
    this.edges.set(this.drr, found);
    return found;
  }

  draw() {
    if (!this.drr) return;
    const { width: w, height: h, mode } = this, picture = this.pen.createImageData(w, h), out = picture.data;
    const xray = this.grey.xray, drr = this.drr, share = this.kept[mode] / 100;
    const grey = pick => { for (let k = 0; k < w * h; k++) { const v = pick(k), u = this.dark ? 255 - v : v; out[4 * k] = out[4 * k + 1] = out[4 * k + 2] = u; out[4 * k + 3] = 255; } };
    if (mode === "wipe") grey(k => (k % w < share * w ? xray : drr)[k]);
    else if (mode === "flicker") grey(k => (this.shown ? xray : drr)[k]);
    else if (mode === "checker") {
      const side = w / Math.round(2 + 18 * share);
      grey(k => ((Math.floor(k % w / side) + Math.floor(Math.floor(k / w) / side)) % 2 ? drr : xray)[k]);
    } else if (mode === "difference") {
      const other = this.matched(), gain = 0.02 * Math.exp(2.5 * (share - 0.35)) * 0.9;
      for (let k = 0; k < w * h; k++) {
        const d = this.inside[k] > 127 ? Math.tanh(gain * (xray[k] - other[k])) : 0, a = Math.abs(d);
        const end = d > 0 ? [255, 140, 26] : [51, 153, 255];
        for (let c = 0; c < 3; c++) out[4 * k + c] = 26 + a * (end[c] - 26);
        out[4 * k + 3] = 255;
      }
    } else if (mode === "edges") {
      const { thin, ranks } = this.strength(), least = ranks.length ? ranks[Math.min(ranks.length - 1, Math.floor((0.98 - 0.58 * share) * ranks.length))] : Infinity;
      grey(k => xray[k]);
      const wide = Math.max(1, Math.round(w / 640));
      for (let k = 0; k < w * h; k++) if (thin[k] > 0 && thin[k] >= least)
        for (let dy = 0; dy <= wide; dy++) for (let dx = 0; dx <= wide; dx++) {
          const j = 4 * (k + dy * w + dx);
          if (j + 2 < out.length) { out[j] = 0; out[j + 1] = 230; out[j + 2] = 118; }
        }
    } else grey(k => (mode === "drr" ? drr : xray)[k]);
    this.pen.putImageData(picture, 0, 0);
    if (mode === "wipe") {
      this.pen.fillStyle = "#ffffffd0";
      this.pen.fillRect(Math.min(w - 1, Math.max(0, share * w - 1)), 0, Math.max(2, w / 400), h);
    }
  }
}
document.querySelectorAll("[data-viewer]").forEach(box => new Viewer(box));

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // a browser that keeps its clipboard from files
    const area = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (!done) return say("The browser does not allow copying: select the text");
  }
  say("Copied");
}
document.querySelectorAll("[data-copy]").forEach(button => button.addEventListener("click", () => copy(button.dataset.copy)));

document.querySelectorAll("[data-scene]").forEach(button => button.addEventListener("click", () => { // made when it is wanted
  const frame = document.createElement("iframe");
  frame.title = "Patient and C-arm in 3D";
  frame.srcdoc = JSON.parse(document.getElementById(button.dataset.scene).textContent);
  button.replaceWith(frame);
}));
