// Under the pointer: the nearest value of every curve, a line each. The page is whole without it.
for (const figure of document.querySelectorAll("figure.plot")) {
  const svg = figure.querySelector(".area > svg");
  const output = figure.querySelector(".readout");
  const data = JSON.parse(figure.querySelector("script").textContent);
  const [low, high] = data.range;
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "path");
  cursor.setAttribute("class", "cursor");
  svg.append(cursor);

  const nearest = (values, x) => {
    let left = 0, right = values.length - 1;
    while (right - left > 1) {
      const middle = (left + right) >> 1;
      if (values[middle] < x) left = middle; else right = middle;
    }
    return x - values[left] <= values[right] - x ? left : right;
  };

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = low + (high - low) * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const first = data.curves[0].x;
    const at = first[nearest(first, x)];
    const share = (at - low) / (high - low);
    cursor.setAttribute("d", `M${1000 * share} 0V1000`);
    const lines = data.curves.map((curve) => {
      const index = nearest(curve.x, at);
      const where = curve.x[index] === at ? "" : ` (${data.x} ${curve.x[index].toLocaleString("en")})`;
      return `${curve.y[index].toLocaleString("en", { maximumSignificantDigits: 4 })}${where} ${curve.label}`;
    });
    output.textContent = [`${data.x} ${at.toLocaleString("en")}`, ...lines].join("\n");
    output.style.justifySelf = share < .5 ? "end" : "start"; // on the side where the pointer is not
  });
  svg.addEventListener("pointerleave", () => {
    cursor.removeAttribute("d");
    output.textContent = "";
  });
}
