for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") !== "descending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = row => row.cells[column].textContent;
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)], [m, n] = [parseFloat(x), parseFloat(y)];
      const missing = (x === "–") - (y === "–");
      if (missing) return missing;
      const difference = Number.isNaN(m) || Number.isNaN(n) ? x.localeCompare(y) : m - n;
      return down ? -difference : difference;
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
  }));
}
const svgElement = (name, attributes, parent) => {
  const element = document.createElementNS(parent.namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return parent.appendChild(element);
};
// A chart's frame is its left, top, right and bottom in the drawing, and the values at its ends.
const readFrame = svg => {
  const [left, top, right, bottom, x0, x1, y0, y1] = svg.dataset.frame.split(" ").map(Number);
  return {
    values: ([x, y]) => [x0 + (x - left) / (right - left) * (x1 - x0), y0 + (bottom - y) / (bottom - top) * (y1 - y0)],
    place: ([x, y]) => [left + (x - x0) / (x1 - x0) * (right - left), bottom - (y - y0) / (y1 - y0) * (bottom - top)],
  };
};
const markPoint = (svg, name, [cx, cy]) => {
  const mark = svg.querySelector(`.${name}`) || svgElement("circle", {class: `mark ${name}`, r: 7}, svg);
  mark.setAttribute("cx", cx);
  mark.setAttribute("cy", cy);
};
for (const svg of document.querySelectorAll("svg[data-frame]")) {
  const frame = readFrame(svg);
  const points = [...svg.querySelectorAll(".line")].flatMap(line => [...line.points].map(point => [point.x, point.y]));
  const caption = svg.nextElementSibling;
  const name = caption && caption.textContent;
  svg.addEventListener("pointermove", event => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const distance = ([x, y]) => Math.hypot(x - at.x, y - at.y);
    const nearest = points.reduce((best, point) => distance(point) < distance(best) ? point : best);
    markPoint(svg, "pointed", nearest);
    const [x, y] = frame.values(nearest);
    caption.textContent = `${x.toPrecision(3)}, ${y.toPrecision(3)}`;
  });
  svg.addEventListener("pointerleave", () => {
    caption.textContent = name;
    svg.querySelector(".pointed")?.remove();
  });
}
for (const box of document.querySelectorAll(".threshold")) {
  const points = JSON.parse(box.dataset.points), input = box.querySelector("input"), output = box.querySelector("output");
  const {chosen, positive, count} = box.dataset;
  const roc = box.parentElement.querySelector("svg[data-frame]");
  const show = () => {
    const [threshold, sensitivity, specificity] = points[input.value];
    const found = Math.round(sensitivity * positive), absent = Math.round(specificity * (count - positive));
    output.textContent = `${threshold.toPrecision(3)}: sensitivity ${sensitivity.toFixed(3)}, specificity ${specificity.toFixed(3)}; `
      + `true positives ${found}, false negatives ${positive - found}, false positives ${count - positive - absent}, true negatives ${absent}`;
    markPoint(roc, "chosen", readFrame(roc).place([1 - specificity, sensitivity]));
  };
  const gap = number => Math.abs(points[number][0] - chosen);
  input.value = chosen ? points.map((_, number) => number).reduce((a, b) => gap(b) < gap(a) ? b : a) : 0;
  input.addEventListener("input", show);
  box.hidden = false;
  show();
}
