// Answers LoRA vectors: node lora.js vectors > results.json
// It computes in double; whoever checks the results rounds them to the format of the vector. A third argument makes it wrong: then
// the gradients of A and B are means over the rows, and no sums.
const fs = require("fs"), [folder, wrong] = process.argv.slice(2);
const manifest = JSON.parse(fs.readFileSync(`${folder}/manifest.json`));

// Matrices are arrays of rows.
const rows = (a) => { // an array of the file, with all its leading dimensions as rows
  const columns = a.shape.length ? a.shape[a.shape.length - 1] : 1, numbers = a.values.map(Number);
  return Array.from({ length: numbers.length / columns }, (_, i) => numbers.slice(i * columns, (i + 1) * columns));
};
const zeros = (n, m) => Array.from({ length: n }, () => Array(m).fill(0));
const turned = (a, columns) => Array.from({ length: columns }, (_, j) => a.map((row) => row[j]));
const times = (a, b, m) => a.map((row) => Array.from({ length: m }, (_, j) => row.reduce((sum, n, k) => sum + n * b[k][j], 0)));
const plus = (a, b, f = 1) => a.map((row, i) => row.map((n, j) => n + f * b[i][j]));
const masked = (a, mask) => (mask ? a.map((row, i) => row.map((n, j) => n * mask[i][j])) : a);

function answers(operation, s, given) {
  const { in_features: n_in, out_features: n_out, rank: r } = s, a = {};
  for (const name in given) a[name] = rows(given[name]);
  const scale = s.alpha / (s.scaling === "rslora" ? Math.sqrt(r) : r), frozen = a.W, { mask, dy } = a, x = a.x || [];
  let { W, A = zeros(n_in, r), B = zeros(r, n_out) } = a, dx, dA = zeros(n_in, r), dB = zeros(r, n_out);
  const z = masked(x, mask), part = wrong ? 1 / Math.max(1, x.length) : 1;
  for (const step of s.steps || [{ merge: "merge", backward: "backward", dropout: "backward" }[operation] || "forward"]) {
    if (step === "backward") {
      const u = times(dy, turned(B, n_out), r); // dy Bᵀ
      dx = plus(times(dy, W, n_in), masked(times(u, turned(A, r), n_in), mask), scale);
      dA = plus(dA, times(turned(z, n_in), u, r), scale * part);
      dB = plus(dB, times(turned(times(z, A, r), r), dy, n_out), scale * part);
    } else if (step === "step") {
      [A, B] = [plus(A, dA, -s.lr), plus(B, dB, -s.lr)];
    } else if (step === "zero_grad") {
      [dA, dB] = [zeros(n_in, r), zeros(r, n_out)];
    } else if (step === "merge") {
      W = plus(frozen, turned(times(A, B, n_out), n_out), scale);
    } else if (step === "unmerge") {
      W = frozen;
    }
  }
  let y = times(x, turned(W, n_in), n_out);
  if (a.b) y = y.map((row) => row.map((n, j) => n + a.b[0][j]));
  if (W === frozen && operation !== "fresh") y = plus(y, times(times(z, A, r), B, n_out), scale);
  return { y, dx, dA, dB, A, B, W };
}

const results = {}, offered = ["forward", "backward", "merge", "fresh", "dropout", "sequence"];
for (const file of Object.keys(manifest.files).filter((name) => name.endsWith(".json") && !name.includes("schema"))) {
  const { operation, vectors } = JSON.parse(fs.readFileSync(`${folder}/${file}`));
  for (const { id, settings, given, answers: asked } of vectors) {
    if (!offered.includes(operation)) { results[id] = { unsupported: "it is not in lora.js" }; continue; }
    const all = answers(operation, settings, given);
    const told = (n) => (Number.isFinite(n) ? n : String(n));
    results[id] = { answers: Object.fromEntries(Object.keys(asked).map((name) => [name, all[name].flat().map(told)])) };
  }
}
console.log(JSON.stringify({ set: manifest.set, program: "lora.js", results }));
