"""`conformance bench`: measures the cost of a LoRA layer as a ratio to its frozen layer. Subjects take turns in one run."""

from conformance.bench.run import Options, default_subjects, run
from conformance.bench.workloads import WORKLOADS, Workload

__all__ = ["WORKLOADS", "Options", "Workload", "default_subjects", "run"]
