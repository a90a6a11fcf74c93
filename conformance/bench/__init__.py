"""`conformance bench`: what a LoRA layer costs beside its frozen layer. Subjects take turns in one run; costs are ratios."""

from conformance.bench.workloads import WORKLOADS, Workload
from conformance.bench.run import Options, run  # noqa: I001

__all__ = ["WORKLOADS", "Options", "Workload", "run"]
