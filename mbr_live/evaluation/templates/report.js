"use strict";

// Ethograms: all rows of a recording are one SVG whose viewBox is the part of the recording that is seen.
const SVG = "http://www.w3.org/2000/svg";
const STEPS_S = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400];
const LEAST_TICKS = 20;

class Ethogram {
  constructor(section) {
    this.plot = section.querySelector(".plot");
    this.bars = section.querySelector("svg.bars");
    this.axis = section.querySelector("svg.time");
    this.cursor = section.querySelector(".cursor");
    this.ticks = Number(section.dataset.ticks);
    this.rate = Number(section.dataset.rate);
    this.height = this.bars.viewBox.baseVal.height;
    this.pointers = new Map();
    this.plot.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.plot.addEventListener("pointerdown", (event) => this.down(event));
    this.plot.addEventListener("pointermove", (event) => this.move(event));
    for (const kind of ["pointerup", "pointercancel"]) {
      this.plot.addEventListener(kind, (event) => this.pointers.delete(event.pointerId));
    }
    this.plot.addEventListener("pointerleave", () => { this.cursor.style.display = "none"; });
    this.plot.addEventListener("dblclick", () => this.show(0, this.ticks));
    this.plot.addEventListener("keydown", (event) => this.key(event));
    for (const button of section.querySelectorAll("button")) {
      button.addEventListener("click", () => this.act(button.dataset.act));
    }
    new ResizeObserver(() => this.drawAxis()).observe(this.plot);
    this.show(0, this.ticks);
  }

  show(start, length) {
    this.length = Math.min(Math.max(length, Math.min(LEAST_TICKS, this.ticks)), this.ticks);
    this.start = Math.min(Math.max(start, 0), this.ticks - this.length);
    this.bars.setAttribute("viewBox", `${this.start} 0 ${this.length} ${this.height}`);
    this.drawAxis();
  }

  zoom(factor, at = 0.5) {
    const middle = this.start + at * this.length;
    const length = Math.min(this.length * factor, this.ticks);
    this.show(middle - at * length, length);
  }

  act(what) {
    if (what === "in") this.zoom(0.5);
    if (what === "out") this.zoom(2);
    if (what === "all") this.show(0, this.ticks);
  }

  place(event) {
    const box = this.plot.getBoundingClientRect();
    return (event.clientX - box.left) / box.width;
  }

  wheel(event) {
    // The page keeps scrolling over an ethogram until the reader has chosen it.
    if (document.activeElement !== this.plot && !event.ctrlKey) return;
    event.preventDefault();
    if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) this.show(this.start + event.deltaX * this.length / 800, this.length);
    else this.zoom(Math.exp(Math.sign(event.deltaY) * Math.min(Math.abs(event.deltaY), 60) * 0.006), this.place(event));
  }

  down(event) {
    this.plot.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, this.place(event));
  }

  move(event) {
    const at = this.place(event);
    this.readOut(at);
    if (!this.pointers.has(event.pointerId)) return;
    const before = this.pointers.get(event.pointerId);
    const others = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
    this.pointers.set(event.pointerId, at);
    if (others.length) {
      const spread = Math.abs(at - others[0]);
      if (spread > 0.02) this.zoom(Math.abs(before - others[0]) / spread, others[0]);
    } else this.show(this.start - (at - before) * this.length, this.length);
  }

  key(event) {
    const steps = { ArrowLeft: -0.2, ArrowRight: 0.2 };
    if (event.key in steps) this.show(this.start + steps[event.key] * this.length, this.length);
    else if (event.key === "+") this.zoom(0.5);
    else if (event.key === "-") this.zoom(2);
    else if (event.key === "0" || event.key === "Escape") this.show(0, this.ticks);
    else return;
    event.preventDefault();
  }

  readOut(at) {
    this.cursor.style.display = "block";
    this.cursor.style.left = `${100 * at}%`;
    this.cursor.firstElementChild.textContent = clock((this.start + at * this.length) / this.rate, 0.1);
  }

  drawAxis() {
    const width = this.plot.clientWidth;
    if (!width) return;
    const seconds = this.length / this.rate;
    const step = STEPS_S.find((each) => seconds / each <= Math.max(width / 85, 2)) || STEPS_S[STEPS_S.length - 1];
    const first = Math.ceil(this.start / this.rate / step - 1e-9);
    const last = Math.floor((this.start + this.length) / this.rate / step + 1e-9);
    this.axis.replaceChildren();
    for (let n = first; n <= last; n += 1) {
      const x = ((n * step * this.rate - this.start) / this.length) * width;
      const line = document.createElementNS(SVG, "line");
      for (const [name, value] of Object.entries({ x1: x, x2: x, y1: 0, y2: 5, class: "ideal" })) line.setAttribute(name, value);
      const text = document.createElementNS(SVG, "text");
      text.setAttribute("x", x);
      text.setAttribute("y", 17);
      text.setAttribute("text-anchor", x < 14 ? "start" : x > width - 14 ? "end" : "middle");
      text.textContent = clock(n * step, step);
      this.axis.append(line, text);
    }
  }
}

function clock(seconds, step) {
  const digits = step < 1 ? 1 : 0;
  const whole = Math.round(seconds * 10 ** digits) / 10 ** digits;
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor((whole % 3600) / 60);
  const rest = (whole % 60).toFixed(digits).padStart(digits ? 4 : 2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

const ethograms = new Map();
for (const section of document.querySelectorAll(".ethogram")) ethograms.set(section.id, new Ethogram(section));

// A link to a moment shows it in the ethogram of its recording.
for (const link of document.querySelectorAll("a[data-start]")) {
  link.addEventListener("click", () => {
    const ethogram = ethograms.get(link.hash.slice(1));
    const length = Math.max(Number(link.dataset.stop) - Number(link.dataset.start), 10) * 5;
    ethogram.show((Number(link.dataset.start) + Number(link.dataset.stop) - length) / 2, length);
  });
}

// Tables: a click on a heading sorts; cells without a figure come last either way.
function sortBy(heading) {
  const table = heading.closest("table");
  const column = [...heading.parentElement.children].indexOf(heading);
  const rising = heading.getAttribute("aria-sort") !== "ascending";
  for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
  const value = (row) => row.children[column].dataset.value ?? row.children[column].textContent.trim();
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
    return rising ? order : -order;
  };
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
}
for (const heading of document.querySelectorAll("table.sortable thead th")) {
  heading.tabIndex = 0;
  heading.addEventListener("click", () => sortBy(heading));
  heading.addEventListener("keydown", (event) => { if (event.key === "Enter") sortBy(heading); });
}

// One choice of behaviour for the table of recordings.
const choice = document.querySelector("#behaviour-choice");
const choose = () => {
  for (const part of document.querySelectorAll("[data-behaviour]")) part.hidden = part.dataset.behaviour !== choice.value;
};
if (choice) {
  choice.addEventListener("change", choose);
  choose();
}

// The order of the ethograms.
const order = document.querySelector("#ethogram-order");
if (order) order.addEventListener("change", () => {
  const sections = [...document.querySelectorAll(".ethogram")];
  const worst = (section) => (section.dataset.f1 === "" ? 2 : Number(section.dataset.f1));
  const compare = order.value === "worst" ? (a, b) => worst(a) - worst(b) : (a, b) => a.dataset.name.localeCompare(b.dataset.name, undefined, { numeric: true });
  document.querySelector("#ethogram-list").append(...sections.sort(compare));
});
