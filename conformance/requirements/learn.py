"""LEARN: several steps in a row."""

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from conformance.requirements import PAPER, Group, requirement
from conformance.requirements.helpers.layers import fresh, prepared, set_mode
from conformance.requirements.helpers.sequences import RATE, moved
from conformance.truth.case import exact_in_any_order
from conformance.truth.compare import expect, expect_equal, wide
from conformance.truth.strategies import exact, sized
from lora_ref import lora

GROUP = Group("LEARN", "Learning", order=110, profile="training", asks="backward")
SOURCES = (f"{PAPER}, §4.1", "gradient descent on ½ ‖y − target‖²")
NEEDS = "set_adapter adapter forward backward zero_grad step"


@requirement(
    "LEARN-01",
    "Several SGD steps MUST follow the trajectory of the reference, bit for bit where it is exact.",
    formula="Aₖ₊₁ = Aₖ − lr · dA(Aₖ, Bₖ), and B likewise", sources=SOURCES, needs=NEEDS, faults="57 63 64 68",
    cases=exact(
        only=("float32", "float64"), in_features=st.integers(1, 4), out_features=st.integers(1, 4),
        rank=st.sampled_from((1, 2)),
        leading=st.tuples(st.integers(1, 2)), scales=(4.0, 0.25), small=True,
    ),
)
def trajectory(subject, case):
    """One step shows the gradient. The second shows what the first one left behind: stale copies, gradients that were not
    cleared, a factor that does not move. It also shows what an evaluation between the steps left behind. The loss is
    ½ ‖y − dy‖², so the gradient depends on the output."""
    layer = prepared(subject, case, training=True)
    target, now = case.dy, case
    for step in range(1, 4):
        residual = (now.truth.y - wide(target)).astype(case.dtype)
        now = now.replace(dy=residual)
        exact = exact_in_any_order(now)
        following = moved(now, now.truth.dA, now.truth.dB) if exact else None
        if following is None:  # the next step is not exact any more; all earlier ones were judged
            assume(step > 2)
            return
        layer.zero_grad()
        set_mode(layer, False)
        expect_equal(layer.forward(case.x.copy()), now.truth.y, f"y in inference mode, before step {step}")
        set_mode(layer, True)
        y = layer.forward(case.x.copy())
        expect_equal(y, now.truth.y, f"y before step {step}")
        layer.backward((wide(y) - wide(target)).astype(case.dtype))
        layer.step(RATE)
        now = following
        for name, want in now.adapter.items():
            expect_equal(layer.adapter()[name], want, f"{name} after {step} SGD steps")


@requirement(
    "LEARN-02",
    "Training towards a target that is W plus a matrix of the layer's rank MUST converge.",
    formula="min ‖x (W + scale · (A B)ᵀ)ᵀ − target‖²", sources=SOURCES, needs=NEEDS, faults="26 55 58 63",
    cases=sized(8, 6, 2, 4.0, only=("float32", "float64")), examples=0.05,
)
def convergence(subject, case):
    """The layer starts from its own initialisation, and trains with its own forward, backward and step. The reference starts
    from the same factors and makes half as many steps. The loss of the layer must be at most that of the reference, so there
    is no threshold to choose. Only descents count in which each step of the reference helps (a rate can be too large for a
    target, and then the loss swings), and in which the second half of the steps halves the loss, far above rounding."""
    layer = fresh(subject, case)
    rng = np.random.default_rng(case.config.seed)
    start = lora.LoRA(*(wide(layer.adapter()[name]).astype(np.float64) for name in ("A", "B")))
    change = lora.LoRA(rng.standard_normal(start.A.shape), rng.standard_normal(start.B.shape))
    W, b = wide(case.W).astype(np.float64), None if case.b is None else wide(case.b).astype(np.float64)
    x = rng.standard_normal((32, case.config.in_features)).astype(case.dtype)
    wide_x = wide(x).astype(np.float64)
    target, _ = lora.forward(wide_x, W, b, change, case.scale / np.sqrt(start.A.size))

    steps, rate = 100, safe_rate(wide_x, start, target, case.scale)
    losses, p = [], start
    for _ in range(steps):
        y, cache = lora.forward(wide_x, W, b, p, case.scale)
        losses.append(float(((y - target) ** 2).sum()))
        _, d = lora.backward((y - target) / len(x), cache)
        p = lora.LoRA(p.A - rate * d.A, p.B - rate * d.B)
    rounding = np.finfo(case.dtype).eps * (np.abs(wide_x) @ np.abs(W).T)
    assume(max(np.diff(losses)) < 0)
    assume(losses[-1] < losses[steps // 2] / 2 < losses[0] / 4 and losses[-1] > float((rounding**2).sum()))

    y = layer.forward(x)
    for _ in range(steps):
        layer.zero_grad()
        layer.backward(((wide(y) - target) / len(x)).astype(case.dtype))
        layer.step(rate)
        y = layer.forward(x)
    loss = float(((wide(y) - target) ** 2).sum())
    expect(loss <= losses[steps // 2], f"squared error after {steps} steps", loss, f"at most {losses[steps // 2]:.3g}")


def safe_rate(x, start: lora.LoRA, target, scale: float) -> float:
    """A rate below 2 / (largest curvature), for B at the start and for A with B as large as the fit can make it."""
    curvature = np.linalg.eigvalsh(x.T @ x / len(x)).max() * scale**2
    size = max(np.linalg.norm(start.A, 2), np.linalg.norm(start.B, 2), 1.0)
    return float(0.5 / (curvature * size**2))
