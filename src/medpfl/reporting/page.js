"use strict";
// Everything on the page works without this script: it adds sorting, filters, values of marks, and a large view.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };

  // Links into closed parts open them.
  const reveal = () => {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let one = target; one; one = one.parentElement) if (one.tagName === "DETAILS") one.open = true;
    if (target) target.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  reveal();
  for (const one of all(".scripted")) one.hidden = false;

  // Sorting and filtering: a line and its details are one tbody.
  const table = document.querySelector("table.cells");
  if (table) {
    const lines = all(":scope > tbody", table);
    const heads = all("th[data-key]", table);
    const bar = document.querySelector(".filters");
    const sorting = bar.querySelector("[data-sorting]");
    const filters = all("[data-filter]", bar);
    const output = bar.querySelector("output");
    const orders = { leaks: 0, inconclusive: 1, "no leak found by these attacks": 2 };
    const value = (line, key) => {
      const text = line.dataset[key];
      if (key === "read" || key === "told") return Number(text);
      return key === "verdict" ? (orders[text] ?? 3) : text.toLowerCase();
    };
    const sort = (key, down) => {
      const sign = down ? -1 : 1;
      const ordered = key
        ? [...lines].sort((a, b) => {
            const one = value(a, key), other = value(b, key);
            const found = typeof one === "number" ? one - other : one.localeCompare(other, "en", { numeric: true });
            return sign * found || lines.indexOf(a) - lines.indexOf(b);
          })
        : lines;
      table.append(...ordered);
      for (const head of heads) {
        if (head.dataset.key === key) head.setAttribute("aria-sort", down ? "descending" : "ascending");
        else head.removeAttribute("aria-sort");
      }
      sorting.value = key ? `${key} ${down ? "down" : "up"}` : "";
    };
    for (const head of heads) {
      const text = head.textContent.trim(), key = head.dataset.key;
      const numbers = key === "read" || key === "told";
      const button = make("button", { type: "button", class: "sort" }, text);
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        sort(key, now ? now === "ascending" : numbers);
      });
      const words = numbers ? ["highest first", "lowest first"] : ["Z first", "A first"];
      if (key === "verdict") words.splice(0, 2, "leaks last", "leaks first");
      if (key === "knows") words.splice(0, 2, "yes first", "no first");
      sorting.append(make("option", { value: `${key} down` }, `${text}, ${words[0]}`));
      sorting.append(make("option", { value: `${key} up` }, `${text}, ${words[1]}`));
    }
    sorting.addEventListener("change", () => {
      const [key, way] = sorting.value.split(" ");
      sort(key, way === "down");
    });
    const filtered = [...lines, ...all(".gallery")];
    const filter = () => {
      for (const one of filtered)
        one.hidden = filters.some((own) => own.value && one.dataset[own.dataset.filter] !== own.value);
      const shown = lines.filter((line) => !line.hidden).length;
      output.textContent = `${shown} of ${lines.length} lines`;
    };
    for (const own of filters) {
      for (const text of new Set(lines.map((line) => line.dataset[own.dataset.filter])))
        own.append(make("option", { value: text }, text));
      own.addEventListener("change", filter);
    }
    filter();
    bar.hidden = false;
  }

  // Values of marks in figures, on hover and on focus. One tab stop a figure; arrows move among its marks.
  const tip = make("div", { class: "tip", hidden: "" });
  document.body.append(tip);
  const show = (mark) => {
    tip.textContent = mark.dataset.tip;
    tip.hidden = false;
    const box = mark.getBoundingClientRect();
    const left = Math.min(box.left + box.width / 2 + 8, document.documentElement.clientWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(4, left) + scrollX}px`;
    tip.style.top = `${box.top - tip.offsetHeight - 6 + scrollY}px`;
  };
  const hide = () => (tip.hidden = true);
  for (const figure of all("figure svg")) {
    const marks = all("[data-tip]", figure);
    if (!marks.length) continue;
    figure.setAttribute("role", "group");
    for (const [place, mark] of marks.entries()) {
      mark.setAttribute("role", "img");
      mark.setAttribute("aria-label", mark.dataset.tip);
      mark.setAttribute("tabindex", place ? "-1" : "0");
      for (const title of all(":scope > title", mark)) title.remove();
      mark.addEventListener("pointerenter", () => show(mark));
      mark.addEventListener("pointerleave", hide);
      mark.addEventListener("focus", () => show(mark));
      mark.addEventListener("blur", hide);
      mark.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (event.key === "Escape") hide();
        if (!step) return;
        event.preventDefault();
        const next = marks[(place + step + marks.length) % marks.length];
        mark.setAttribute("tabindex", "-1");
        next.setAttribute("tabindex", "0");
        next.focus();
      });
    }
  }

  // The large view: both images at one size, one over the other with a slider between them, and a zoom.
  if (all(".pair").length) {
    const title = make("h2", { id: "viewer-title" });
    const slider = make("input", { type: "range", min: "0", max: "100", value: "50", "aria-label": "Slider between target and guess" });
    const zoom = make("input", { type: "range", min: "1", max: "8", step: "1", value: "1", "aria-label": "Zoom" });
    const images = () => [make("img"), make("img")];
    const [target, guess] = images(), [under, over] = images();
    over.className = "over";
    const frame = (...inner) => make("div", { class: "frame", tabindex: "0", role: "group" }, make("div", { class: "sheet" }, ...inner));
    const frames = [frame(target), frame(guess), frame(under, over, make("div", { class: "edge" }))];
    ["Target", "Guess", "Target left of the line, guess right of it"].forEach((text, i) => frames[i].setAttribute("aria-label", text));
    const figure = (text, ...inner) => make("figure", {}, ...inner, make("figcaption", {}, text));
    const button = (text) => make("button", { type: "button" }, text);
    const [before, after, close] = [button("Previous"), button("Next"), button("Close")];
    const viewer = make(
      "dialog",
      { class: "viewer", "aria-labelledby": "viewer-title" },
      title,
      make("div", { class: "tools" }, before, after, make("label", {}, "Zoom", zoom), close),
      make(
        "div",
        { class: "views" },
        figure("target", frames[0]),
        figure("guess", frames[1]),
        figure("target left of the line, guess right of it", frames[2], slider),
      ),
    );
    document.body.append(viewer);
    let row = [], place = 0;
    // The line divides what is visible, also where the images are enlarged and scrolled.
    const cut = () => {
      const seen = frames[2];
      const at = seen.scrollLeft + (Number(slider.value) / 100) * seen.clientWidth;
      viewer.style.setProperty("--cut", `${(100 * at) / Math.max(1, seen.scrollWidth)}%`);
    };
    const enlarge = () => {
      viewer.style.setProperty("--zoom", zoom.value);
      cut();
    };
    const draw = () => {
      const panel = row[place];
      const [one, other] = all(".pair img", panel);
      for (const [image, source] of [[target, one], [under, one], [guess, other], [over, other]]) {
        image.src = source.src;
        image.alt = source.alt;
      }
      const of = panel.closest(".gallery").querySelector("h3").textContent.trim();
      title.textContent = `${of}: ${panel.querySelector("figcaption").innerText.replace(/\n+/g, ", ")}`;
      before.disabled = place === 0;
      after.disabled = place === row.length - 1;
    };
    const go = (step) => {
      place = Math.min(row.length - 1, Math.max(0, place + step));
      draw();
    };
    before.addEventListener("click", () => go(-1));
    after.addEventListener("click", () => go(1));
    close.addEventListener("click", () => viewer.close());
    slider.addEventListener("input", cut);
    zoom.addEventListener("input", enlarge);
    // Both images of a pair scroll together when enlarged.
    for (const one of frames)
      one.addEventListener("scroll", () => {
        for (const other of frames) {
          const [left, top] = [one.scrollLeft, one.scrollTop].map((at) => (at * other.scrollWidth) / one.scrollWidth);
          if (Math.abs(other.scrollLeft - left) > 1 || Math.abs(other.scrollTop - top) > 1) other.scrollTo(left, top);
        }
        cut();
      });
    viewer.addEventListener("keydown", (event) => {
      if (event.target.type === "range" || event.target.className === "frame") return;
      if (event.key === "ArrowLeft") go(-1);
      if (event.key === "ArrowRight") go(1);
    });
    for (const gallery of all(".gallery"))
      gallery.addEventListener("toggle", () => {
        for (const pair of gallery.open ? all(".pair", gallery) : []) {
          if (pair.closest("button")) continue;
          const panel = pair.closest(".panel");
          const opener = make("button", { type: "button", class: "open", "aria-label": `Compare large: ${panel.querySelector("b").textContent}` });
          pair.replaceWith(opener);
          opener.append(pair);
          opener.addEventListener("click", () => {
            [row, place] = [all(".panel", gallery), all(".panel", gallery).indexOf(panel)];
            draw();
            viewer.showModal();
            enlarge();
          });
        }
      });
  }
})();
