// Scenes follow the page's light or dark.
(() => {
  const set = () => {
    const theme = document.documentElement.dataset.theme;
    if (!theme) return;
    for (const frame of document.querySelectorAll("figure.scene iframe")) {
      const url = new URL(frame.getAttribute("src"), location.href);
      if (url.searchParams.get("theme") === theme) continue;
      url.searchParams.set("theme", theme);
      frame.setAttribute("src", url.href);
    }
  };
  document.addEventListener("DOMContentLoaded", set);
  new MutationObserver(set).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
})();
