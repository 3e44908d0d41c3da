// What the test does on the page of a subject.
const report = { loaded: performance.getEntriesByType("resource").map((r) => r.name) };
const press = (key, repeat = false) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, repeat, bubbles: true, cancelable: true }));
const pressed = () => [...document.querySelectorAll("[data-decision]")].map((b) => b.getAttribute("aria-pressed"));
const said = () => document.querySelector('[data-part="said"]').textContent;
const note = document.querySelector('[data-part="note"]');
report.first = said();
press("a"); report.accept = pressed();
press("a"); report.again = said();
press("m"); note.value = 'says "no"\tbad'; note.dispatchEvent(new Event("input", { bubbles: true }));
press("u"); report.typed = said();
press("Escape"); press("e"); press("e", true); report.exclude = pressed();
press("o"); press("l");
report.hidden = [...document.querySelectorAll("[data-layer]")].every((i) => i.hidden && !i.getClientRects().length);
press("o"); press("l");
report.images = [...document.images].every((i) => i.complete && i.naturalWidth > 100);
report.wide = document.documentElement.scrollWidth - innerWidth;
report.next = document.querySelector('[data-part="after"]').getAttribute("href");
// The ends of an order that the index left, in which this page is the first and the last one.
const order = `scalebrain-qc ${JSON.parse(document.getElementById("qc-data").textContent).key} order `;
const here = JSON.parse(document.getElementById("qc-data").textContent).here;
const list = JSON.parse(document.getElementById("qc-data").textContent).pages;
const turns = (pages, of = list) => {
  localStorage.setItem(order, JSON.stringify({ of, pages }));
  dispatchEvent(new Event("pageshow"));
  return ["before", "after"].map((name) => {
    const link = document.querySelector(`[data-part="${name}"]`);
    return link.getClientRects().length ? link.getAttribute("href") : null;
  });
};
report.atFirst = turns([here, "x.html"]);
report.atLast = turns(["x.html", here]);
report.ofOthers = turns(["gone.html", here, "x.html"], "another list");
localStorage.removeItem(order);
report.kept = Object.entries(localStorage);
document.body.dataset.report = JSON.stringify(report);
