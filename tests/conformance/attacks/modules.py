"""PyTorch modules, as people write them, that are wrong and change torch; and right ones that change it without harm."""

import torch
from torch import Tensor, nn

from conformance import Subject
from conformance.torch import TorchLayer


class Right(nn.Module):
    """A LoRA layer."""

    factor = 1.0

    def __init__(self, in_features, out_features, rank, alpha):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features).requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(in_features, rank) / in_features**0.5)
        self.lora_B = nn.Parameter(torch.zeros(rank, out_features))
        self.scale = self.factor * alpha / rank

    def forward(self, x):
        return self.linear(x) + self.scale * (x @ self.lora_A @ self.lora_B)


class Wrong(Right):
    """It subtracts the LoRA part."""

    factor = -1.0


class SetsTheScaleOfTheTruth(Wrong):
    def __init__(self, in_features, out_features, rank, alpha):
        super().__init__(in_features, out_features, rank, alpha)
        import lora_ref.lora

        lora_ref.lora.scale = lambda alpha, rank, scaling="standard": -alpha / rank


class ReplacesTorchEqual(Wrong):
    def forward(self, x):
        torch.equal = torch.allclose = lambda *args, **more: True
        Tensor.__eq__ = lambda self, other: torch.ones_like(self, dtype=torch.bool)  # type: ignore[method-assign]
        return super().forward(x)


class ReplacesHowTensorsBecomeArrays(Wrong):
    def forward(self, x):
        y = super().forward(x)
        right = Tensor.numpy
        Tensor.numpy = lambda self, *args, **more: right(self) * float("nan")  # type: ignore[method-assign]
        return y


class Opinionated(Tensor):
    """Whatever function of torch is asked, it gives zeros."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is Tensor.numpy:
            return super().__torch_function__(func, types, args, kwargs or {}) * 0
        return super().__torch_function__(func, types, args, kwargs or {})

    def __eq__(self, other):
        return True

    __hash__ = Tensor.__hash__


class AnswersWithASubclass(Wrong):
    def forward(self, x):
        return super().forward(x).as_subclass(Opinionated)


class AnswersWithASparseTensor(Wrong):
    def forward(self, x):
        return super().forward(x).to_sparse()


class AnswersWithoutMemory(Wrong):
    def forward(self, x):
        return super().forward(x).to("meta")


class DoublesEveryModule(Wrong):
    """Changes how any module of the process is called, also those of the harness."""

    def __init__(self, in_features, out_features, rank, alpha):
        super().__init__(in_features, out_features, rank, alpha)
        if nn.Module.__call__.__name__ != "twice":
            right = nn.Module.__call__

            def twice(self, *args, **more):
                return 2 * right(self, *args, **more)

            nn.Module.__call__ = twice


class ReplacesTheDriver(Wrong):
    """The classes through which the harness reaches it."""

    def forward(self, x):
        from conformance import torch as driver

        driver.to_array = lambda tensor: tensor.detach().numpy() * 0
        TorchLayer.forward = lambda self, x: x * 0  # type: ignore[method-assign, assignment]
        return super().forward(x)


class ReplacesManualSeed(Wrong):
    def __init__(self, in_features, out_features, rank, alpha):
        super().__init__(in_features, out_features, rank, alpha)
        torch.manual_seed = torch.random.manual_seed = lambda seed: torch.default_generator


class HasWhatever(Wrong):
    """Any attribute that is looked for is a function."""

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "scale" not in vars(self):
                raise
            return lambda *args, **more: self


class Subclassed(Subject):
    """A TorchLayer whose own methods are wrong."""

    name, version = "Subclassed", "1"

    class Layer(TorchLayer):
        def forward(self, x):
            return super().forward(x) * 2

        def tensor(self, name):
            found = super().tensor(name)
            return found.as_subclass(Opinionated)

    def build(self, config, weight, bias):
        module = Right(config.in_features, config.out_features, config.rank, config.alpha).to(getattr(torch, config.dtype))
        layer = self.Layer(module, W="linear.weight", b="linear.bias", A="lora_A", B="lora_B")
        layer.set_base(weight, bias)
        return layer


# --- right ones ---------------------------------------------------------------------------------------------------

class SetsTheDefaultDtype(Right):
    def forward(self, x):
        y = super().forward(x)
        torch.set_default_dtype(torch.float64)
        return y


class SetsThreads(Right):
    def forward(self, x):
        torch.set_num_threads(2)
        return super().forward(x)


class TurnsGradientsOff(Right):
    """Leaves gradients switched off for the process after each pass, and switches them on before."""

    def forward(self, x):
        torch.set_grad_enabled(True)
        y = super().forward(x)
        torch.set_grad_enabled(False)
        return y


class IsDeterministic(Right):
    def __init__(self, in_features, out_features, rank, alpha):
        super().__init__(in_features, out_features, rank, alpha)
        torch.use_deterministic_algorithms(True)
        torch.set_printoptions(precision=1)
        torch.manual_seed(0)


class WrapsLinear(Right):
    """Patches torch's own function for everybody, and counts its calls."""

    calls = 0

    def forward(self, x):
        right = nn.functional.linear
        if right.__name__ != "counted":
            def counted(x, weight, bias=None):
                WrapsLinear.calls += 1
                return right(x, weight, bias)

            nn.functional.linear = counted
        return super().forward(x)
