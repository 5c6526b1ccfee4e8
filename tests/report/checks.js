// What test_browser.py looks at in the page, from inside it: an object of functions.
({
  // Boxes that lie over each other or leave the page, and texts of one plot over each other.
  overlaps() {
    const wanted = "h1, h2, h3, h4, h5, p, li, label, input, select, .box, figcaption, summary, #explorer svg, button, nav a";
    const boxes = [...document.querySelectorAll(wanted)].filter((one) => one.checkVisibility()).map((one) => {
      const {left, top, right, bottom} = one.getBoundingClientRect();
      return {one, left, top, right, bottom};
    }).filter(({left, top, right, bottom}) => right - left > 1 && bottom - top > 1);
    const name = ({one}) => `${one.tagName} ${one.getAttribute("aria-label") || one.textContent}`.slice(0, 70);
    const wide = boxes.filter((box) => box.right > innerWidth + 1 && !box.one.parentElement.closest(".box"));
    const wrong = wide.map((box) => `${name(box)} leaves the page`);
    const shared = (a, b) => [
      Math.min(a.right, b.right) - Math.max(a.left, b.left), Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top),
    ];
    const below = boxes.sort((a, b) => a.top - b.top);
    below.forEach((a, i) => {
      for (const b of below.slice(i + 1)) {
        if (b.top >= a.bottom - 1) break;
        if (!a.one.contains(b.one) && !b.one.contains(a.one) && shared(a, b)[0] > 1) wrong.push(`${name(a)} | ${name(b)}`);
      }
    });
    for (const svg of document.querySelectorAll("#explorer svg")) {
      const texts = [...svg.querySelectorAll("text")].map((one) => [one.textContent, one.getBoundingClientRect()]);
      texts.forEach(([a, x], i) => texts.slice(i + 1).forEach(([b, y]) => {
        const [across, down] = shared(x, y);
        if (across > 1 && down > 3) wrong.push(`text ${a} | text ${b}`);
      }));
    }
    return wrong;
  },

  // How much the texts, and the lines of the plots, stand out from the page's background (WCAG 2.2's contrast ratio).
  contrasts() {
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const light = (color) => {
      const [r, g, b] = color.match(/[\d.]+/g).slice(0, 3).map((part) => linear(part / 255));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const back = light(getComputedStyle(document.body).backgroundColor);
    const ratio = (color) => {
      const [more, less] = [light(color), back].sort((a, b) => b - a);
      return (more + 0.05) / (less + 0.05);
    };
    const styles = (wanted) => [...document.querySelectorAll(wanted)].map((one) => getComputedStyle(one));
    const lines = styles("#explorer svg[role=img] g[aria-label=line] path").map((style) => style.stroke);
    const words = [
      ...styles("p, label, figcaption, summary, a").map((style) => style.color),
      ...styles("#explorer svg text").map((style) => style.fill),
    ];
    return {back, colors: lines, lines: lines.map(ratio), words: Math.min(...words.map(ratio))};
  },

  // Controls, plots, regions and pictures that a screen reader has no name for.
  nameless() {
    const all = (wanted) => [...document.querySelectorAll(wanted)];
    const labelled = (one) => [...one.labels].some((label) => label.control === one && label.textContent.trim());
    return [
      ...all("input, select").filter((one) => !labelled(one)),
      ...all("svg[role=img], [role=region], [role=group]").filter((one) => !one.getAttribute("aria-label")),
      ...all("img").filter((one) => !one.alt),
      ...all("button, a").filter((one) => !one.textContent.trim()),
    ].map((one) => one.outerHTML.slice(0, 90));
  },

  // Of each figure: the height of a letter of 10 points in pixels, which of its forms is shown, and its filter.
  figures() {
    return [...document.querySelectorAll("figure img")].map((one) => ({
      letters: 10 * (4 / 3) * one.clientWidth / one.naturalWidth,
      narrow: one.currentSrc !== one.src,
      right: one.getBoundingClientRect().right,
      filter: getComputedStyle(one).filter,
    }));
  },

  // Numbers all that the keyboard has to reach, and says how many they are.
  reachable() {
    const wanted = document.querySelectorAll("a[href], button, input, select, summary, [tabindex]");
    const shown = [...wanted].filter((one) => one.checkVisibility());
    shown.forEach((one, i) => { one.dataset.nth = i; });
    return shown.length;
  },

  // The number of what has the focus, null for what has none, and how it is marked.
  focused() {
    const here = document.activeElement;
    return [here.dataset.nth ?? null, getComputedStyle(here).outlineStyle];
  },

  // Tries to run a script that the page did not come with.
  smuggle() {
    const script = document.createElement("script");
    script.textContent = "window.foreign = true";
    document.body.append(script);
    return "foreign" in window;
  },
})
