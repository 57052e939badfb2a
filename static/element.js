/** A new element. `attributes` are set as attributes (true = empty, false or null = left out), children are nodes or text. */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

/** The element with this id, which index.html has. */
export const byId = (id) => document.getElementById(id);

/** Shows `text` in the element, or hides it when there is none. */
export function showText(node, text) {
  node.textContent = text ?? "";
  node.hidden = !text;
}
