"""`conformance bench`: what a LoRA layer costs beside its frozen layer. Subjects take turns in one run; costs are ratios."""

from conformance.bench.run import Options, default_subjects, run
from conformance.bench.workloads import WORKLOADS, Workload

__all__ = ["WORKLOADS", "Options", "Workload", "default_subjects", "run"]
