// Quality control: decisions, kept by the browser until they are exported.
{
  const root = document.querySelector("main[data-qc]");
  const data = JSON.parse(document.getElementById("qc-data").textContent);
  const part = (name, inside = root) => inside.querySelector(`[data-part="${name}"]`);
  const memory = {
    name: (kind, rest = "") => `scalebrain-qc ${data.key} ${kind} ${rest}`,
    get(kind, rest) {
      try { return JSON.parse(localStorage.getItem(this.name(kind, rest))); } catch { return null; }
    },
    set(kind, rest, value) {
      try { localStorage.setItem(this.name(kind, rest), JSON.stringify(value)); return true; } catch { return false; }
    },
  };
  const words = ["accept", "exclude", "unsure"];
  const keys = { a: "accept", e: "exclude", u: "unsure" };
  // A decision holds for the scan that it was made on; of another one it is told, not taken.
  const decided = (person) => {
    const kept = memory.get("of", person.subject);
    if (kept && kept.scan === person.scan) return { ...kept, isKept: true, earlier: "" };
    const { decision, note, rater, date } = person;
    const was = kept ? [kept.decision, kept.note].filter(Boolean).join(", ") : "";
    return { decision, note, rater, date, isKept: false, earlier: was && `decided on an earlier scan: ${was}` };
  };
  const decide = (person, change) => {
    const held = decided(person);
    const made = {
      decision: held.decision, note: held.note, ...change,
      rater: memory.get("rater") ?? "", date: new Date().toISOString(), scan: person.scan,
    };
    if (change.decision && change.decision === held.decision) made.decision = "";
    return memory.set("of", person.subject, made);
  };
  const isTyping = (event) => event.ctrlKey || event.metaKey || event.altKey
    || event.target.matches("select, input:not([type=checkbox])");

  if (root.dataset.qc === "subject") {
    const person = data.people[0], note = part("note"), said = part("said");
    const show = () => {
      const held = decided(person);
      for (const button of root.querySelectorAll("[data-decision]")) {
        button.setAttribute("aria-pressed", String(button.dataset.decision === held.decision));
      }
      if (document.activeElement !== note) note.value = held.note;
      const from = held.isKept ? `${held.date.slice(0, 16).replace("T", " ")} UTC` : "as in the store or table";
      said.textContent = [held.decision ? `${held.decision}, ${from}` : "not decided", held.earlier].filter(Boolean).join("; ");
    };
    const change = (what) => {
      const kept = decide(person, what);
      show();
      if (!kept) said.textContent = "This browser keeps nothing for this page: the decision is lost when it closes.";
    };
    for (const button of root.querySelectorAll("[data-decision]")) {
      button.addEventListener("click", () => change({ decision: button.dataset.decision }));
    }
    note.addEventListener("input", () => change({ note: note.value }));
    for (const box of root.querySelectorAll("[data-toggle]")) {
      box.addEventListener("change", () => {
        for (const layer of root.querySelectorAll(`[data-layer="${box.dataset.toggle}"]`)) layer.hidden = !box.checked;
      });
    }
    // Next and previous in the order that the index was left in.
    const own = ["before", "after"].map((name) => part(name).getAttribute("href"));
    const turn = () => {
      const left = memory.get("order"), order = left?.of === data.pages ? left.pages : [];
      const at = order.indexOf(data.here);
      const [before, after] = at < 0 ? own : [order[at - 1], order[at + 1]];
      for (const [name, page] of [["before", before], ["after", after]]) {
        const link = part(name);
        link.hidden = !/^[\w-]+\.html$/.test(page ?? "");
        if (link.hidden) link.removeAttribute("href");
        else link.setAttribute("href", page);
      }
    };
    const toggle = (name) => root.querySelector(`[data-toggle="${name}"]`)?.click();
    addEventListener("keydown", (event) => {
      if (event.repeat) {  // a button that has the focus would be pressed again and again
        if (event.key === "Enter" && event.target.matches("button")) event.preventDefault();
        return;
      }
      if (event.target === note && ["Escape", "Enter"].includes(event.key)) note.blur();
      if (isTyping(event)) return;
      const key = event.key.toLowerCase();
      if (key in keys) change({ decision: keys[key] });
      else if (key === "m") note.focus();
      else if (key === "o") toggle("outlines");
      else if (key === "l") toggle("lesion");
      else if (key === "n") part("after").click();
      else if (key === "p") part("before").click();
      else if (key === "i") root.querySelector('a[href="index.html"]').click();
      else return;
      event.preventDefault();
    });
    for (const name of ["pageshow", "storage"]) addEventListener(name, () => { show(); turn(); });
    show();
    turn();
  } else {
    const people = data.people, body = document.querySelector("#people tbody");
    const tiles = root.querySelector(".tiles"), order = part("order"), rater = part("rater");
    const tileOf = [], rowOf = [];
    for (const tile of tiles.children) tileOf[tile.dataset.at] = tile;
    for (const row of body.rows) rowOf[row.dataset.at] = row;
    const option = (select, text, value = text) => select.append(new Option(text, value));
    const known = (all) => [...new Set(all)].filter(Boolean).sort();
    known(people.map((p) => p.cohort)).forEach((name) => option(part("cohort"), name));
    known(people.flatMap((p) => p.flags)).forEach((name) => option(part("flag"), name));

    const filter = () => {
      const show = part("show").value, cohort = part("cohort").value, flag = part("flag").value;
      const find = part("find").value.trim().toLowerCase();
      const pages = [];
      for (const row of body.rows) {
        const person = people[row.dataset.at], word = decided(person).decision;
        const isShown = (show === "" || (show === "flagged" ? person.flags.length > 0 : show === "undecided" ? !word : word === show))
          && (!cohort || person.cohort === cohort) && (!flag || person.flags.includes(flag))
          && person.subject.toLowerCase().includes(find);
        row.hidden = tileOf[row.dataset.at].hidden = !isShown;
        if (isShown) pages.push(person.page);
      }
      part("shown").textContent = `${pages.length} of ${people.length} shown`;
      memory.set("order", "", { of: data.pages, pages });
    };
    const show = () => {
      const n = { accept: 0, exclude: 0, unsure: 0 };
      people.forEach((person, at) => {
        const held = decided(person), word = words.includes(held.decision) ? held.decision : "";
        if (word) n[word] += 1;
        const cell = part("word", rowOf[at]);
        const text = (word || (held.earlier && "earlier scan")) + (held.note ? " *" : "");
        cell.textContent = part("word", tileOf[at]).textContent = text;
        cell.title = part("word", tileOf[at]).title = [held.note, held.earlier].filter(Boolean).join("; ");
        cell.dataset.sort = cell.dataset.word = tileOf[at].dataset.word = word;
      });
      const total = n.accept + n.exclude + n.unsure;
      part("progress").value = total;
      part("said").textContent = `${total} of ${people.length} decided: ${n.accept} accept, ${n.exclude} exclude, ${n.unsure} unsure`;
      filter();
    };
    // The mosaic follows the table.
    const follow = () => { for (const row of body.rows) tiles.append(tileOf[row.dataset.at]); filter(); };
    const heads = [...document.querySelectorAll("#people thead button")];
    option(order, "outliers first", "");
    heads.forEach((head, column) => {
      option(order, head.textContent, column);
      head.addEventListener("click", () => { order.value = column; follow(); });
    });
    const first = [...body.rows];
    order.addEventListener("change", () => {
      if (order.value !== "") { heads[order.value].click(); return; }
      body.append(...first);
      heads.forEach((head) => head.parentNode.removeAttribute("aria-sort"));
      follow();
    });
    part("reverse").addEventListener("click", () => {
      if (order.value !== "") { heads[order.value].click(); return; }
      body.append(...[...body.rows].reverse());
      follow();
    });
    for (const name of ["show", "cohort", "flag", "find"]) part(name).addEventListener("input", filter);
    rater.value = memory.get("rater") ?? "";
    rater.addEventListener("input", () => memory.set("rater", "", rater.value));

    tiles.addEventListener("keydown", (event) => {
      if (event.repeat) return;
      const tile = event.target.closest(".tile"), word = keys[event.key.toLowerCase()];
      if (!tile || !word || isTyping(event)) return;
      event.preventDefault();
      const kept = decide(people[tile.dataset.at], { decision: word });
      show();
      if (!kept) part("said").textContent = "This browser keeps nothing for this page: export is not possible.";
    });
    // A table as BIDS has it; a cell with a quote is quoted, tabs and line ends become spaces.
    const cell = (value) => {
      const text = String(value ?? "").replace(/\s+/g, " ").trim() || "n/a";
      return text.includes('"') ? `"${text.replaceAll('"', '""')}"` : text;
    };
    part("export").addEventListener("click", () => {
      const lines = [["participant_id", "decision", "note", "rater", "date"]];
      for (const person of [...people, ...data.others]) {
        const held = decided(person);
        if (!words.includes(held.decision) && !held.note) continue;
        if (held.isKept && !held.rater && rater.value.trim()) {  // made before initials were written: these, for good
          const { decision, note, date, scan } = held;
          held.rater = rater.value;
          memory.set("of", person.subject, { decision, note, rater: held.rater, date, scan });
        }
        lines.push([person.subject, held.decision, held.note, held.rater, held.date]);
      }
      const text = lines.map((line) => `${line.map(cell).join("\t")}\n`).join("");
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], { type: "text/tab-separated-values" }));
      link.download = "decisions.tsv";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
    addEventListener("pageshow", show);
    addEventListener("storage", show);
    show();
  }
}
