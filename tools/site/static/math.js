// Formulas, by the KaTeX that comes with the site: Sphinx leaves them as TeX between \( \) or \[ \].
function formulas() {
  for (const node of document.querySelectorAll(".math")) {
    const tex = node.textContent.trim();
    const display = tex.startsWith("\\[");
    katex.render(tex.replace(/^\\[[(]|\\[\])]$/g, ""), node, { displayMode: display, throwOnError: false });
  }
}
if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", formulas);
else formulas();
