// Draws the Mermaid blocks of a page. Mermaid comes from this site and only to pages that need it:
// the theme's own support would load it from another host.
(function () {
  const script = document.currentScript.src;
  const blocks = document.querySelectorAll("pre.diagram");
  if (!blocks.length) return;
  const library = document.createElement("script");
  library.src = new URL("mermaid-11.17.2.min.js", script).href;
  library.onload = () => {
    const dark = document.body.dataset.mdColorScheme === "slate";
    for (const block of blocks) {
      const picture = document.createElement("div");
      picture.className = "diagram";
      picture.textContent = block.textContent;
      block.replaceWith(picture);
    }
    mermaid.initialize({ startOnLoad: false, theme: dark ? "dark" : "neutral" });
    mermaid.run({ querySelector: "div.diagram" });
  };
  document.head.append(library);
})();
