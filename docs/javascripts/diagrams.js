// Draws the Mermaid blocks of a page, anew when the reader switches between light and dark. Mermaid
// comes from this site and only to pages that need it: the theme's own support would load it from
// another host.
(function () {
  const DARK = {
    background: "#1e2129",
    clusterBkg: "#272b36",
    clusterBorder: "#8a90a0",
    edgeLabelBackground: "#1e2129",
  };
  const LEGIBLE_PIXELS = 620; // a narrower screen scrolls a diagram instead of shrinking it
  const script = document.currentScript.src;
  const blocks = document.querySelectorAll("pre.diagram");
  if (!blocks.length) return;
  const sources = new Map();
  for (const block of blocks) {
    const picture = document.createElement("div");
    picture.className = "diagram";
    picture.style.overflowX = "auto";
    sources.set(picture, block.textContent);
    block.replaceWith(picture);
  }
  const draw = () => {
    const dark = document.body.dataset.mdColorScheme === "slate";
    for (const [picture, source] of sources) {
      picture.textContent = source;
      picture.removeAttribute("data-processed"); // Mermaid skips what has it
    }
    mermaid.initialize({
      startOnLoad: false,
      theme: dark ? "dark" : "neutral",
      // Mermaid's own dark theme draws groups and labels as light grey boxes.
      themeVariables: dark ? DARK : {},
    });
    mermaid.run({ querySelector: "div.diagram" }).then(widen);
  };
  const widen = () => {
    for (const svg of document.querySelectorAll("div.diagram > svg")) {
      const own = parseFloat(svg.style.maxWidth) || LEGIBLE_PIXELS;
      svg.style.minWidth = `${Math.min(own, LEGIBLE_PIXELS)}px`;
    }
  };
  const library = document.createElement("script");
  library.src = new URL("mermaid-11.17.2.min.js", script).href;
  library.onload = () => {
    draw();
    new MutationObserver(draw).observe(document.body, {
      attributeFilter: ["data-md-color-scheme"],
    });
  };
  document.head.append(library);
})();
