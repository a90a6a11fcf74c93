// A LoRA layer as a program. `conformance run 'cmd:node lora.js'` checks it, and it passes as it stands. Replace the arithmetic
// with calls of your implementation, and keep the layout: x (n, in), W (out, in), b (out), A (in, rank), B (rank, out), rows
// first. Each line of standard input is a request, and each gets one line as answer: see conformance/PROTOCOL.md. What is not
// offered is answered with "unsupported". The requirements that need it are then neither passed nor failed.
'use strict';

class Unsupported extends Error {}
const layers = new Map();

// --- arrays: {shape, dtype, data} on the wire, {shape, dtype, n: numbers} here -------------------------------------
function decode(a) {
  const bytes = Uint8Array.from(Buffer.from(a.data, 'base64'));
  const kind = { float32: Float32Array, float64: Float64Array }[a.dtype];
  if (!kind) throw new Unsupported(a.dtype);
  return { shape: a.shape, dtype: a.dtype, n: new kind(bytes.buffer) };
}

function encode(shape, dtype, numbers) {
  const kind = { float32: Float32Array, float64: Float64Array }[dtype];
  return { shape, dtype, data: Buffer.from(kind.from(numbers).buffer).toString('base64') };
}

// left (n, k) times right (k, m). With leftT or rightT that matrix is stored transposed.
function product(left, right, n, k, m, { leftT = false, rightT = false } = {}) {
  const out = new Float64Array(n * m);
  for (let i = 0; i < n; i++)
    for (let j = 0; j < m; j++)
      for (let t = 0; t < k; t++)
        out[i * m + j] += (leftT ? left[t * n + i] : left[i * k + t]) * (rightT ? right[j * k + t] : right[t * m + j]);
  return out;
}

const sum = (left, right, factor = 1) => left.map((value, i) => value + factor * right[i]);

// --- the layer ----------------------------------------------------------------------------------------------------
class Layer {
  constructor(config, W, b) {
    if (!Number.isInteger(config.rank) || config.rank < 1) throw new Error(`rank is ${config.rank}, expected at least 1`);
    if (typeof config.alpha !== 'number') throw new Error(`alpha is ${config.alpha}, expected a finite number`);
    if (config.dropout !== 0) throw new Unsupported('dropout');
    if (config.scaling !== 'standard') throw new Unsupported(`${config.scaling} scaling`);
    Object.assign(this, { in: config.in_features, out: config.out_features, r: config.rank, dtype: config.dtype, b });
    this.scale = config.alpha / config.rank;
    this.W = W;
    let state = config.seed + 1;
    const uniform = () => ((state = (Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + 0x9e3779b9) >>> 0) / 2 ** 31 - 1);
    this.A = Float64Array.from({ length: this.in * this.r }, () => Math.fround(uniform() / Math.sqrt(this.in)));
    this.B = new Float64Array(this.r * this.out);
    this.zero_grad();
  }
  forward({ x }) {
    if (x.shape.at(-1) !== this.in) throw new Error(`x is (${x.shape}), expected (…, ${this.in})`);
    const n = x.n.length / this.in || 0;
    Object.assign(this, { x: x.n, n, leading: x.shape.slice(0, -1) });
    this.h = product(x.n, this.A, n, this.in, this.r); // (n, rank)
    const base = product(x.n, this.W, n, this.in, this.out, { rightT: true });
    const y = sum(base, product(this.h, this.B, n, this.r, this.out), this.scale);
    return this.array([...this.leading, this.out], this.b ? y.map((value, i) => value + this.b[i % this.out]) : y);
  }
  backward({ dy }) {
    if (String(dy.shape) !== String([...this.leading, this.out])) throw new Error(`dy is (${dy.shape}), y is not`);
    const u = product(dy.n, this.B, this.n, this.out, this.r, { rightT: true }).map((value) => value * this.scale);
    const dA = product(this.x, u, this.in, this.n, this.r, { leftT: true });
    const dB = product(this.h, dy.n, this.r, this.n, this.out, { leftT: true });
    this.dA = sum(this.dA, dA);
    this.dB = sum(this.dB, dB, this.scale);
    const base = product(dy.n, this.W, this.n, this.out, this.in);
    const dx = sum(base, product(u, this.A, this.n, this.r, this.in, { rightT: true }));
    return { x: this.array([...this.leading, this.in], dx), ...this.pair(this.dA, this.dB) };
  }
  zero_grad() {
    this.dA = new Float64Array(this.A.length);
    this.dB = new Float64Array(this.B.length);
  }
  step({ lr }) {
    const round = this.dtype === 'float32' ? Math.fround : Number;
    this.A = sum(this.A, this.dA, -lr).map(round);
    this.B = sum(this.B, this.dB, -lr).map(round);
  }
  adapter() { return this.pair(this.A, this.B); }
  set_adapter({ arrays: { A, B } }) {
    if (String(A.shape) !== `${this.in},${this.r}` || String(B.shape) !== `${this.r},${this.out}`)
      throw new Error(`A is (${A.shape}) and B (${B.shape}), expected (${this.in},${this.r}) and (${this.r},${this.out})`);
    this.A = Float64Array.from(A.n);
    this.B = Float64Array.from(B.n);
  }
  weight() { return this.array([this.out, this.in], this.W); }
  bias() { return this.b && this.array([this.out], this.b); }
  trainable() { return { A: [this.in, this.r], B: [this.r, this.out] }; }
  array(shape, numbers) { return encode(shape, this.dtype, numbers); }
  pair(A, B) { return { A: this.array([this.in, this.r], A), B: this.array([this.r, this.out], B) }; }
}

// --- requests -----------------------------------------------------------------------------------------------------
const offered = ['forward', 'backward', 'zero_grad', 'step', 'adapter', 'set_adapter', 'weight', 'bias', 'trainable'];

function answer(request) {
  const read = (value) => value && value.data !== undefined ? decode(value) : value;
  const given = Object.fromEntries(Object.entries(request).map(([key, value]) => [key, read(value)]));
  if (given.arrays) for (const name in given.arrays) given.arrays[name] = decode(given.arrays[name]);
  if (request.method === 'hello') return { protocol: 1, name: 'my-lora', version: '0.1' };
  if (request.method === 'forget') return void layers.delete(request.layer);
  if (request.method === 'build')
    return void layers.set(request.layer, new Layer(request.config, given.W.n, given.b && given.b.n));
  if (!offered.includes(request.method)) throw new Unsupported(request.method);
  return layers.get(request.layer)[request.method](given);
}

require('node:readline').createInterface({ input: process.stdin }).on('line', (line) => {
  const request = JSON.parse(line);
  let said;
  try {
    said = { result: answer(request) ?? null };
  } catch (error) {
    said = error instanceof Unsupported ? { unsupported: error.message } : { error: error.message };
  }
  process.stdout.write(`${JSON.stringify({ id: request.id, ...said })}\n`);
});
