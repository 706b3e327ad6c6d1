// Under the pointer: the nearest value of every curve, a line each. The page is whole without it.
for (const figure of document.querySelectorAll("figure.plot")) {
  const svg = figure.querySelector(".area > svg");
  const output = figure.querySelector(".readout");
  const data = JSON.parse(figure.querySelector("script").textContent);
  const scale = data.log ? Math.log : (x) => x;
  const [low, high] = data.range.map(scale);
  const form = (x) => (x >= 1 ? {} : { maximumSignificantDigits: 4 });
  const said = (x) => data.names.find(([place]) => place === x)?.[1] ?? x.toLocaleString("en", form(x));
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "path");
  cursor.setAttribute("class", "cursor");
  svg.append(cursor);

  const nearest = (values, x) => {
    let left = 0, right = values.length - 1;
    while (right - left > 1) {
      const middle = (left + right) >> 1;
      if (scale(values[middle]) < x) left = middle; else right = middle;
    }
    return x - scale(values[left]) <= scale(values[right]) - x ? left : right;
  };

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = low + (high - low) * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const first = data.curves[0].x;
    const at = first[nearest(first, x)];
    const share = (scale(at) - low) / (high - low);
    cursor.setAttribute("d", `M${1000 * share} 0V1000`);
    const lines = data.curves.map((curve) => {
      const index = nearest(curve.x, scale(at));
      const where = curve.x[index] === at ? "" : ` (${data.x} ${said(curve.x[index])})`;
      return `${curve.y[index].toLocaleString("en", { maximumSignificantDigits: 4 })}${where} ${curve.label}`;
    });
    output.textContent = [`${data.x} ${said(at)}`, ...lines].join("\n");
    output.style.justifySelf = share < .5 ? "end" : "start"; // on the side where the pointer is not
  });
  svg.addEventListener("pointerleave", () => {
    cursor.removeAttribute("d");
    output.textContent = "";
  });
}
