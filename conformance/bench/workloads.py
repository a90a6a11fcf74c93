"""The sizes that the benchmark measures, and the goals of lora_torch at these sizes."""

from typing import NamedTuple


class Workload(NamedTuple):
    name: str
    n: int  # rows of x
    in_features: int
    out_features: int
    rank: int
    goal: float | None = None  # forward and backward of lora_torch over those of the frozen layer, at most

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        return self.n, self.in_features, self.out_features, self.rank

    def smaller(self) -> "Workload":
        """The same workload at small sizes, for a rehearsal. It has no goal."""
        return self._replace(n=max(4, self.n // 32), in_features=max(8, self.in_features // 32),
                             out_features=max(8, self.out_features // 32), rank=min(self.rank, 4), goal=None)


# float32 on the CPU with two threads; bfloat16 on one H100. The goals are those that this project set itself.
WORKLOADS = {
    "cpu": [
        Workload("C1", 512, 1024, 1024, 16, 1.10), Workload("C2", 2048, 1024, 1024, 16, 1.09),
        Workload("C3", 2048, 1024, 4096, 16, 1.06), Workload("C4", 2048, 2048, 2048, 16, 1.05),
        Workload("C5", 128, 768, 768, 8, 1.15), Workload("C6", 4096, 512, 512, 8, 1.18),
    ],
    "cuda": [
        Workload("S1", 8192, 4096, 4096, 16, 1.25), Workload("S2", 8192, 4096, 14336, 16, 1.17),
        Workload("S3", 16384, 8192, 8192, 32, 1.14), Workload("S4", 2048, 4096, 4096, 8, 1.45),
    ],
}


def sweep(device: str) -> dict[str, list[Workload]]:
    """Workloads in which one size grows and the others stay: rank, rows or width."""
    k = 1 if device == "cpu" else 4  # all sizes are larger on a GPU
    n, d, r = 512 * k, 1024 * k, 16
    return {
        "rank": [Workload(f"rank {rank}", n, d, d, rank) for rank in (1, 2, 4, 8, 16, 32, 64, 128)],
        "rows": [Workload(f"rows {rows}", rows, d, d, r) for rows in (n // 16, n // 8, n // 4, n // 2, n, 2 * n, 4 * n)],
        "width": [Workload(f"width {width}", n, width, width, r) for width in (d // 4, d // 2, d, 2 * d)],
    }
