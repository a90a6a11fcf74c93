"""A plain LoRA layer, as an article teaches it: no merge, no dropout."""

NEEDS = ("torch",)


def subject():
    import torch
    from torch import nn

    from conformance.drivers.torch_module import ModuleSubject

    class ArticleLoRA(nn.Module):
        def __init__(self, in_features: int, out_features: int, rank: int, alpha: float):
            super().__init__()
            self.linear = nn.Linear(in_features, out_features)
            for parameter in self.linear.parameters():
                parameter.requires_grad = False
            self.lora_A = nn.Parameter(torch.zeros(in_features, rank))
            nn.init.kaiming_normal_(self.lora_A, a=0.01)
            self.lora_B = nn.Parameter(torch.zeros(rank, out_features))
            self.scale = alpha / rank

        def forward(self, x):
            return self.linear(x) + self.scale * (x @ self.lora_A @ self.lora_B)

    made = ModuleSubject(ArticleLoRA)
    made.name = "article"
    return made
