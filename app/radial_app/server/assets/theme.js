// Before anything is drawn: the colours that were chosen, else the system's.
(() => {
  const chosen = localStorage.getItem("radial-theme");
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
})();
