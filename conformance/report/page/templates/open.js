
// Shows a JSON report that somebody else has made. Whatever is in it becomes text, and never markup.
const FAILING = ["fail", "error", "crash", "timeout"];
const WORDS = { unsupported: "not offered", indeterminate: "no case could tell" };
const VERDICTS = { conformant: "p", partial: "s", nonconformant: "f", void: "s", "not offered": "u" };
const known = JSON.parse(document.getElementById("catalogue").textContent);

function el(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== "").map((child) => (child instanceof Node ? child : text(child))));
  return made;
}

// Characters that cannot be seen, such as those that turn the direction of text, are written as their number.
const text = (value) => String(value).replace(/[\p{C}\u2028\u2029]/gu, (one) => (one === "\n" || one === "\t" ? one
  : `\\u{${one.codePointAt(0).toString(16)}}`));
const mark = (row) => (FAILING.includes(row.status) && row.level !== "MUST" ? "s"
  : { pass: "p", fail: "f", unsupported: "u", indeterminate: "i" }[row.status] ?? "e");
const word = (row) => WORDS[row.status] ?? row.status;
const number = (value) => (typeof value === "number" ? String(Number(value.toPrecision(3))) : "");
const pairs = (rows) => el("dl", {}, ...rows.flatMap(([name, said]) => [el("dt", {}, name), el("dd", {}, el("bdi", {}, said))]));

function evidence(row) {
  const failure = row.failure ?? {};
  const names = { case: "case", needed: "only with", what: "what", got: "got", want: "want" };
  const found = Object.entries(names).filter(([key]) => key in failure).map(([key, name]) => [name, failure[key]]);
  const { error, bound } = failure;
  if (typeof error === "number" && typeof bound === "number") {
    found.push(["error / bound", bound ? `${number(error)} / ${number(bound)} = ${number(error / bound)}`
      : `${number(error)} / 0: it must be equal bit for bit`]);
  }
  if (row.message && !row.message.includes(failure.got)) found.push(["message", row.message]);
  if (row.status === "pass") found.push(["cases", row.examples], ["error / bound", number(row.worst)]);
  if (row.diagnosis) found.push(["likely cause", row.diagnosis]);
  return found;
}

function requirement(row, words) {
  const script = row.reproduce ? [el("p", { class: "small" }, "To see it alone:"),
    el("pre", { tabindex: 0, "aria-label": text(`a script that shows ${row.id} alone`) }, el("code", {}, row.reproduce))] : [];
  return el("details", { class: "cause", "data-status": text(row.status) },
    el("summary", {}, el("span", { class: `tag ${mark(row)}` }, word(row)), " ", el("b", {}, row.id), " ", row.title, " ",
      el("span", { class: "level" }, row.level)),
    words.sentence ? el("p", { class: "sentence" }, words.sentence) : "",
    words.formula ? el("p", { class: "formula" }, words.formula) : "", pairs(evidence(row)), ...script);
}

function subject(report, catalogue) {
  const rows = new Map(report.requirements.map((row) => [row.id, row]));
  const failing = report.requirements.filter((row) => FAILING.includes(row.status));
  const words = (row) => catalogue[row.id] ?? known.requirements[row.id] ?? {};
  const show = (id) => requirement(rows.get(id), words(rows.get(id)));
  const passed = report.requirements.filter((row) => row.status === "pass").length;
  const told = new Set((report.causes ?? []).flatMap((cause) => cause.requirements));
  const causes = [...(report.causes ?? []), ...failing.filter((row) => !told.has(row.id)).map((row) => ({ requirements: [row.id] }))];
  const groups = new Map();
  for (const row of report.requirements) groups.set(row.group, [...(groups.get(row.group) ?? []), row]);
  const section = el("section", { class: "report" },
    el("h2", {}, el("bdi", {}, report.subject.name || report.subject.spec), " ",
      el("span", { class: "small" }, el("bdi", {}, report.subject.version))),
    el("p", {}, el("span", { class: `pill v-${VERDICTS[report.verdict] ?? "e"}` }, report.verdict),
      ` ${passed} passed of ${passed + failing.length} that were decided`));
  for (const said of [report.message, ...(report.void_since ?? [])].filter(Boolean)) {
    section.append(el("p", { class: "notice" }, el("bdi", {}, said)));
  }
  if (causes.length) section.append(el("h3", {}, "Failures by cause"));
  for (const cause of causes) {
    const shown = cause.requirements.filter((id) => rows.has(id)).map(show);
    shown[0]?.append(...shown.slice(1));
    section.append(...shown.slice(0, 1));
  }
  section.append(el("h3", {}, "All requirements"));
  for (const [group, members] of groups) {
    const score = members.filter((row) => row.status === "pass").length;
    section.append(el("details", { class: "group" }, el("summary", {}, el("b", {}, group), " ", known.groups[group] ?? "", " ",
      el("span", { class: "small" }, `${score} of ${members.length} passed`)), ...members.map((row) => show(row.id))));
  }
  if (Object.keys(report.conventions ?? {}).length) {
    section.append(el("h3", {}, "Conventions"), pairs(Object.entries(report.conventions)));
  }
  return section;
}

document.getElementById("file").addEventListener("change", async (event) => {
  const said = document.getElementById("said"), opened = document.getElementById("opened"), file = event.target.files[0];
  opened.replaceChildren();
  if (!file) return;
  try {
    const run = JSON.parse(await file.text());
    if (!Array.isArray(run.reports)) throw new Error("it has no list of reports");
    const made = run.reports.map((report) => subject(report, run.catalogue?.requirements ?? {}));
    opened.append(...made, el("h2", {}, "How this was made"), pairs(Object.entries(run.environment ?? {}).filter(([, value]) => value)));
    copying(opened);
    said.textContent = text(`${file.name}: ${made.length} ${made.length === 1 ? "subject" : "subjects"}`);
  } catch (error) {
    said.textContent = text(`${file.name} is no report of conformance run --json: ${error.message}`);
  }
});
