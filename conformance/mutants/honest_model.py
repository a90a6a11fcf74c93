"""A transformer with one method on it, in NumPy, that shares no code with `lora_ref`: what the mutants of MODEL, ADAPT, PREFIX
and PTUNE are mutants of.

    h ← E[tokens] + P[positions]                                  virtual tokens among them, or before the keys of each layer
    h ← h + attention(norm(h)),  h ← h + mlp(norm(h))             once per layer; adapters behind, beside or around
    logits = norm(h) headᵀ                                        of the tokens alone

It computes in the dtype of its arrays. The steps are methods, so that a fault is a subclass of a few lines; the way back
follows from the way there, see `conformance.mutants.tape`.
"""

import numpy as np

from conformance.model import Model, ModelConfig
from conformance.mutants.tape import Node, Tape
from conformance.subject import Arrays, Unsupported

ADAPTERS = {"houlsby": ("attention.output", "mlp.output"), "pfeiffer": ("output",), "parallel": ("mlp",)}  # in a layer
Past = tuple[Node, Node]  # the keys and the values of a prefix in one layer, each (length, groups · size)


class HonestModel(Tape, Model):
    """Adds LoRA's product to that of W, merges into W, and has a softmax over the prefix and the tokens together."""

    def __init__(self, config: ModelConfig, arrays: Arrays):
        if config.dtype not in ("float32", "float64") or config.device != "cpu":
            raise Unsupported(f"{config.dtype} on {config.device}")
        self.config, self.dtype = config, np.dtype(config.dtype)
        self.wide: type = self.dtype.type  # in which it computes
        self.W = {name: self.rounded(array) for name, array in arrays.items()}
        self.on, self.positions = True, config.positions
        self.rng = np.random.default_rng(config.seed)
        self.p = {name: self.rounded(array) for name, array in self.start().items()}
        self.zero_grad()

    def rounded(self, array: np.ndarray) -> np.ndarray:
        """A copy in the dtype of the model."""
        return array.astype(self.dtype)

    # --- how the method starts ----------------------------------------------------------------------------------

    def start(self) -> Arrays:
        if self.config.method == "prefix":
            return self.start_prefix()
        if self.config.method == "ptuning":
            return self.start_prompts()
        place_of = {"lora": self.start_lora, "adapter": self.start_adapter}.get(self.config.method)
        if place_of is None:
            return {}
        return {f"{place}.{name}": array for place in self.places() for name, array in place_of(place).items()}

    def places(self) -> list[str]:
        """Where LoRA or the adapters are."""
        own = {"lora": self.config.targets, "adapter": ADAPTERS[self.config.form]}.get(self.config.method, ())
        return [f"layers.{i}.{part}" for i in range(self.config.layers) for part in own]

    def start_lora(self, place: str) -> Arrays:
        out, n_in = self.W[f"{place}.weight"].shape
        return {"A": self.normal(n_in, self.config.rank) * n_in**-0.5, "B": np.zeros((self.config.rank, out))}

    def start_adapter(self, place: str) -> Arrays:
        d, m, near = self.config.width, self.config.bottleneck, self.config.start == "near"
        up = 0.01 * self.truncated(m, d) if near else np.zeros((m, d))
        return {"down": 0.01 * self.truncated(d, m), "down_bias": np.zeros(m), "up": up, "up_bias": np.zeros(d)}

    def start_prefix(self) -> Arrays:
        c, width, hidden = self.config, self.key_width, self.config.hidden_size
        if hidden is None:
            return {f"prefix.{name}": self.normal(c.layers, c.length, width) for name in ("keys", "values")}
        network = self.start_network(c.width, hidden, 2 * c.layers * width)
        return {f"prefix.{name}": array for name, array in ({"embedding": self.normal(c.length, c.width)} | network).items()}

    def start_prompts(self) -> Arrays:
        d, hidden, found = self.config.width, self.config.hidden_size, {}
        found["embedding"] = self.normal(len(self.positions), d)
        if hidden is not None and self.config.encoder == "lstm":
            for way in ("forward", "backward"):
                found |= {f"{way}_W": self.matrix(4 * hidden, d), f"{way}_U": self.matrix(4 * hidden, hidden),
                          f"{way}_b": np.zeros(4 * hidden)}
            found |= self.start_network(2 * hidden, 2 * hidden, d)
        elif hidden is not None and self.config.encoder == "mlp":
            found |= self.start_network(d, hidden, d)
        return {f"prompt.{name}": array for name, array in found.items()}

    def start_network(self, n_in: int, hidden: int, out: int) -> Arrays:
        return {"W1": self.matrix(hidden, n_in), "b1": np.zeros(hidden), "W2": self.matrix(out, hidden), "b2": np.zeros(out)}

    def matrix(self, out: int, n_in: int) -> np.ndarray:
        return self.normal(out, n_in) * n_in**-0.5

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape)

    def truncated(self, *shape: int) -> np.ndarray:
        """Standard normal, with what is beyond ±2 drawn again."""
        found = self.normal(*shape)
        while (far := np.abs(found) > 2).any():
            found[far] = self.normal(int(far.sum()))
        return found

    @property
    def key_width(self) -> int:
        """Of the keys of one token, and of its values."""
        return self.config.width // self.config.heads * self.config.kv_heads

    # --- forward ------------------------------------------------------------------------------------------------

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        self.begin()
        self.leaves: dict[str, Node] = {}
        self.result = self.logits(tokens, mask)
        return self.rounded(self.result.array)

    def leaf(self, name: str) -> Node:
        """The node of an array of the base or of the method; the same one however often it is used."""
        if name not in self.leaves:
            self.leaves[name] = Node(self.array(name), name in self.trains())
        return self.leaves[name]

    def array(self, name: str) -> np.ndarray:
        """What is computed with under that name."""
        return (self.p if name in self.p else self.W)[name].astype(self.wide, copy=False)

    def has(self, name: str) -> bool:
        """Whether the method is on and has an array of that name."""
        return self.on and name in self.p

    def logits(self, tokens: np.ndarray, mask: np.ndarray | None) -> Node:
        h = self.words(tokens)
        prompted = self.has("prompt.embedding")
        if prompted:
            h, mask = self.with_prompts(h, self.prompts()), self.mask_with_prompts(mask)
        count = h.array.shape[1]
        h = self.plus(h, self.looked_up(self.leaf("embed_positions.weight"), self.numbered(count)))
        self.seen = self.visible(count, mask)
        for i in range(self.config.layers):
            h = self.layer(h, i)
        h = self.norm(h, "norm")
        if prompted:
            h = self.part(h, (slice(None), self.rows_with_logits(count)))
        return self.product(h, self.leaf("embed_tokens.weight" if self.config.tied else "lm_head.weight"))

    def words(self, tokens: np.ndarray) -> Node:
        return self.looked_up(self.leaf("embed_tokens.weight"), tokens)

    @property
    def length(self) -> int:
        """Of the prefix, if there is one now."""
        return self.config.length if self.has("prefix.keys") or self.has("prefix.embedding") else 0

    def numbered(self, count: int) -> np.ndarray:
        """The positions of what stands in the sequence: the prefix has the first ones."""
        return np.arange(self.length, self.length + count)

    def visible(self, count: int, mask: np.ndarray | None) -> np.ndarray:
        """(samples or 1, T, length + T): query i sees the prefix, and of the tokens up to its own those that are no padding.
        Every token sees itself, so that there is something to see for padding, too."""
        tokens = self.earlier(count)[None]
        if mask is not None:
            tokens = tokens & mask[:, None] | np.eye(count, dtype=bool)
        return np.concatenate([np.ones((*tokens.shape[:2], self.length), bool), tokens], -1)

    def earlier(self, count: int) -> np.ndarray:
        """[i, j]: whether j is not behind i."""
        return np.tri(count, dtype=bool)

    def layer(self, h: Node, i: int) -> Node:
        at = f"layers.{i}"
        h = self.residual(h, self.attention(self.norm(h, f"{at}.attention_norm"), i), f"{at}.attention.output", "")
        x = self.norm(h, f"{at}.mlp_norm")
        return self.residual(h, self.beside(x, self.mlp(x, at), f"{at}.mlp"), f"{at}.mlp.output", f"{at}.output")

    def residual(self, h: Node, y: Node, before: str, behind: str) -> Node:
        """h + y, with the adapter that stands before the sum, or the one behind it."""
        return self.adapted(self.plus(h, self.adapted(y, before)), behind)

    def norm(self, h: Node, place: str) -> Node:
        b = self.leaf(f"{place}.bias") if f"{place}.bias" in self.W else None
        return self.normed(h, self.leaf(f"{place}.weight"), b, self.config.norm == "layer")

    def mlp(self, x: Node, at: str) -> Node:
        up = self.linear(x, f"{at}.up_proj")
        if self.config.activation == "silu":
            return self.linear(self.times(self.bent(self.linear(x, f"{at}.gate_proj"), "silu"), up), f"{at}.down_proj")
        return self.linear(self.bent(up, self.config.activation), f"{at}.down_proj")

    def linear(self, x: Node, place: str) -> Node:
        y = self.product(x, self.leaf(f"{place}.weight"))
        if f"{place}.bias" in self.W:
            y = self.plus(y, self.leaf(f"{place}.bias"))
        return self.plus(y, self.lora(x, place)) if self.has(f"{place}.A") else y

    # --- attention ----------------------------------------------------------------------------------------------

    def attention(self, x: Node, i: int) -> Node:
        q, k, v = self.projected(x, f"layers.{i}")
        return self.linear(self.attend(q, k, v, self.past(i) if self.length else None, self.seen), f"layers.{i}.o_proj")

    def projected(self, x: Node, at: str) -> list[Node]:
        if not self.config.fused:
            return [self.linear(x, f"{at}.{part}_proj") for part in "qkv"]
        qkv, ends = self.linear(x, f"{at}.qkv_proj"), np.cumsum([self.config.width, self.key_width, self.key_width])
        return [self.part(qkv, (..., slice(start, end))) for start, end in zip((0, *ends), ends, strict=False)]

    def attend(self, q: Node, k: Node, v: Node, past: Past | None, seen: np.ndarray) -> Node:
        """softmax(q [P_k k]ᵀ / √size) [P_v v], head by head."""
        if past is not None:
            samples = len(q.array)
            k, v = (self.joined([self.for_each_sample(p, samples), own], -2) for p, own in zip(past, (k, v), strict=True))
        heads, groups = self.config.heads, self.config.kv_heads
        q = self.split_into_heads(q, heads, 1)
        k, v = (self.split_into_heads(own, groups, heads // groups) for own in (k, v))
        return self.all_heads(q, k, v, seen)

    def all_heads(self, q: Node, k: Node, v: Node, seen: np.ndarray) -> Node:
        return self.heads_together(self.one_attention(q, k, v, seen[:, None]))

    def one_attention(self, q: Node, k: Node, v: Node, seen: np.ndarray) -> Node:
        return self.matmul(self.softmax(self.scores(q, k), seen), v)

    def scores(self, q: Node, k: Node) -> Node:
        return self.scaled(self.matmul(q, self.transposed(k)), self.score_scale())

    def score_scale(self) -> float:
        return float((self.config.width // self.config.heads) ** -0.5)

    # --- LoRA ---------------------------------------------------------------------------------------------------

    @property
    def scale(self) -> float:
        return self.config.alpha / self.config.rank

    def lora(self, x: Node, place: str) -> Node:
        """scale · (x A) B."""
        h = self.product(x, self.transposed(self.leaf(f"{place}.A")))
        return self.scaled(self.product(h, self.transposed(self.leaf(f"{place}.B"))), self.scale)

    def delta(self, place: str) -> np.ndarray:
        """scale · (A B)ᵀ, shaped as W."""
        return self.scale * (self.array(f"{place}.A") @ self.array(f"{place}.B")).T

    # --- adapters -----------------------------------------------------------------------------------------------

    def adapted(self, z: Node, place: str) -> Node:
        """z + Ad(z), if there is an adapter at that place."""
        return self.plus(z, self.adapter(z, place)) if self.has(f"{place}.down") else z

    def beside(self, x: Node, y: Node, place: str) -> Node:
        """y + Ad(x), where y is what a sub-layer makes of x."""
        return self.plus(y, self.adapter(x, place)) if self.has(f"{place}.down") else y

    def adapter(self, z: Node, place: str) -> Node:
        """scale · (f(z D + d) U + u)."""
        D, d, U, u = (self.leaf(f"{place}.{name}") for name in ("down", "down_bias", "up", "up_bias"))
        a = self.adapter_bent(self.plus(self.product(z, self.transposed(D)), d))
        return self.adapter_scaled(self.product(a, self.transposed(U)), u)

    def adapter_bent(self, z: Node) -> Node:
        return self.bent(z, self.config.nonlinearity)

    def adapter_scaled(self, y: Node, u: Node) -> Node:
        return self.scaled(self.plus(y, u), self.config.adapter_scale)

    # --- prefixes -----------------------------------------------------------------------------------------------

    def past(self, i: int) -> Past:
        """Keys and values of layer i."""
        if self.has("prefix.keys"):
            return self.part(self.leaf("prefix.keys"), i), self.part(self.leaf("prefix.values"), i)
        P, (keys, values) = self.prefix_made(), self.columns(i)
        return self.part(P, (slice(None), keys)), self.part(P, (slice(None), values))

    def prefix_made(self) -> Node:
        """tanh(E W1ᵀ + b1) W2ᵀ + b2, (length, 2 · layers · key_width)."""
        E, W1, b1, W2, b2 = (self.leaf(f"prefix.{name}") for name in ("embedding", "W1", "b1", "W2", "b2"))
        return self.plus(self.product(self.prefix_bent(self.plus(self.product(E, W1), b1)), W2), b2)

    def prefix_bent(self, z: Node) -> Node:
        return self.bent(z, "tanh")

    def columns(self, i: int) -> tuple[slice, slice]:
        """Of what the network gives, those that are keys of layer i, and those that are its values."""
        width = self.key_width
        return slice(2 * i * width, (2 * i + 1) * width), slice((2 * i + 1) * width, (2 * i + 2) * width)

    # --- prompts ------------------------------------------------------------------------------------------------

    def with_prompts(self, h: Node, prompts: Node) -> Node:
        """(n, T, width) → (n, T + count, width)."""
        samples, T, width = h.array.shape
        at, rest = list(self.positions), self.rows_of_tokens(T + len(self.positions))
        whole = np.empty((samples, T + len(at), width), h.array.dtype)
        whole[:, at], whole[:, rest] = prompts.array, h.array
        return self.made(whole, (h, lambda d: d[:, rest]), (prompts, lambda d: self.over_samples(d[:, at])))

    def over_samples(self, d: np.ndarray) -> np.ndarray:
        """The gradient of what all samples have in common."""
        return d.sum(0)

    def rows_of_tokens(self, count: int) -> np.ndarray:
        """Where the tokens stand in a sequence of that length."""
        return np.setdiff1d(np.arange(count), self.positions)

    def rows_with_logits(self, count: int) -> np.ndarray:
        return self.rows_of_tokens(count)

    def mask_with_prompts(self, mask: np.ndarray | None) -> np.ndarray | None:
        if mask is None:
            return None
        whole = np.full((len(mask), mask.shape[1] + len(self.positions)), self.prompts_seen())
        whole[:, self.rows_of_tokens(whole.shape[1])] = mask
        return whole

    def prompts_seen(self) -> bool:
        return True

    def prompts(self) -> Node:
        """E, or what the encoder makes of it: relu(x W1ᵀ + b1) W2ᵀ + b2."""
        E = self.leaf("prompt.embedding")
        if not self.has("prompt.W1"):
            return E
        x = self.both_ways(E) if self.has("prompt.forward_W") else E
        W1, b1, W2, b2 = (self.leaf(f"prompt.{name}") for name in ("W1", "b1", "W2", "b2"))
        return self.plus(self.product(self.encoder_bent(self.plus(self.product(x, W1), b1)), W2), b2)

    def encoder_bent(self, z: Node) -> Node:
        return self.bent(z, "relu")

    def both_ways(self, E: Node) -> Node:
        """[h→ h←], (count, 2 · hidden)."""
        there, back = self.lstm(E, "forward"), self.lstm(self.turned(E), "backward")
        return self.joined([there, self.turned_again(back)], -1)

    def turned(self, a: Node) -> Node:
        """The rows from the last to the first."""
        return self.part(a, slice(None, None, -1))

    def turned_again(self, a: Node) -> Node:
        return self.turned(a)

    def lstm(self, x: Node, way: str) -> Node:
        """c ← f c + i g,  h ← o tanh(c), row by row; i, f, o through σ, g through tanh."""
        W, U, b = (self.leaf(f"prompt.{way}_{name}") for name in "WUb")
        h = c = Node(np.zeros((1, U.array.shape[1]), U.array.dtype))
        found = []
        for t in range(len(x.array)):
            row = self.part(x, slice(t, t + 1))
            i, f, g, o = self.gates(self.plus(self.plus(self.product(row, W), self.product(h, U)), b))
            i, f, g, o = self.bent(i, "sigmoid"), self.bent(f, "sigmoid"), self.bent(g, "tanh"), self.bent(o, "sigmoid")
            c = self.plus(self.times(f, c), self.times(i, g))
            h = self.times(o, self.bent(c, "tanh"))
            found.append(h)
        return self.joined(found, -2)

    def gates(self, u: Node) -> list[Node]:
        """i, f, g, o."""
        hidden = u.array.shape[1] // 4
        return [self.part(u, (..., slice(k * hidden, (k + 1) * hidden))) for k in range(4)]

    # --- backward, and training ---------------------------------------------------------------------------------

    def backward(self, dlogits: np.ndarray) -> Arrays:
        if dlogits.shape != self.result.array.shape:
            raise ValueError(f"dlogits is {dlogits.shape}, expected {self.result.array.shape}, the shape of the logits")
        self.go_back(self.result, dlogits.astype(self.wide, copy=False))
        for name, leaf in self.leaves.items():
            if leaf.gradient is not None:
                found, leaf.gradient = self.rounded(leaf.gradient), None
                self.dp[name] = self.dp[name] + found if name in self.dp else found
        return dict(self.dp)

    def zero_grad(self) -> None:
        self.dp: Arrays = {}

    def trains(self) -> list[str]:
        """The names of what gets a gradient, and moves."""
        return list(self.W if self.config.method == "full" else self.p)

    def trainable(self) -> dict[str, tuple[int, ...]]:
        return {name: (self.p if name in self.p else self.W)[name].shape for name in self.trains()}

    def step(self, lr: float) -> None:
        for name, gradient in self.dp.items():
            own = self.p if name in self.p else self.W
            own[name] = own[name] - lr * gradient

    # --- state --------------------------------------------------------------------------------------------------

    def arrays(self) -> Arrays:
        return dict(self.p)

    def set_arrays(self, arrays: Arrays) -> None:
        for name, array in arrays.items():
            if name not in self.p or array.shape != self.p[name].shape:
                raise ValueError(f"{name} {array.shape} is none of the arrays that are trained, or not of its shape")
        self.p |= {name: self.rounded(array) for name, array in arrays.items()}

    def base(self) -> Arrays:
        return dict(self.W)

    def switch(self, on: bool) -> None:
        self.on = on

    def merge(self) -> None:
        if self.config.method != "lora":
            raise RuntimeError(f"merge: there is no LoRA in a model of method {self.config.method}")
        places = [name.removesuffix(".A") for name in self.p if name.endswith(".A")]
        self.W |= {f"{place}.weight": self.rounded(self.merged_weight(place)) for place in places}
        self.p = {}

    def merged_weight(self, place: str) -> np.ndarray:
        return self.array(f"{place}.weight") + self.delta(place)

    def fold(self) -> None:
        self.begin()
        self.leaves = {}
        if self.config.method == "prefix":
            layers = [self.past(i) for i in range(self.config.layers)]
            made = {f"prefix.{name}": np.stack([past[j].array for past in layers]) for j, name in enumerate(("keys", "values"))}
        elif self.config.method == "ptuning":
            made = {"prompt.embedding": self.prompts_kept()}
        else:
            raise RuntimeError(f"fold: there is no network in a model of method {self.config.method}")
        self.p = {name: self.rounded(array) for name, array in made.items()}

    def prompts_kept(self) -> np.ndarray:
        return self.prompts().array
