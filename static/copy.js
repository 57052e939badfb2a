/** Buttons with data-copy="id" copy that element's text. */
import { byId, element } from "./element.js";

const SHOWN = 1500; // ms

export function enableCopyButtons(announce) {
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const done = await copy(byId(button.dataset.copy).textContent);
      button.textContent = done ? "Copied" : "Press Ctrl C";
      announce(done ? "Command copied" : "Copying was refused");
      setTimeout(() => (button.textContent = "Copy"), SHOWN);
    });
  }
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text); // plain http on another host than localhost has no clipboard API
  }
}

function copyBySelection(text) {
  const area = element("textarea", { class: "visually-hidden", "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}
