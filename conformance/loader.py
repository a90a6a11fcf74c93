"""The interface of a base model on which adapter files are loaded, for what no layer and no model in memory can show: that the
file means the same to its reader as to its writer. NumPy arrays go in, NumPy arrays come out.

    base    {module}.weight, and {module}.bias of some: layers beside each other, with names as in published models
    kinds   module → "linear": W (out, in), y = x Wᵀ + b;   "embedding": W (rows, columns), y = W[i];
                     "conv1d": W (in, out), y = x W + b, the layer of GPT-2
"""

from os import PathLike

from conformance.subject import Arrays, Unsupported


class Loader:
    """A base model that reads adapter files. Every method raises Unsupported unless it is overridden."""

    def load(self, path: str | PathLike[str]) -> None:
        """Put the adapter of a file, or of a folder, on the model, in the place of the one that it has. Raises any exception
        for a file that it refuses, and then leaves the model as it was."""
        raise Unsupported("load()")

    def delta(self) -> Arrays:
        """What the adapter adds in inference mode: to the weight of each module, under the name of the module and in the shape
        of the weight, and to its output under "{module}.bias". What is not changed may be left out."""
        raise Unsupported("delta()")

    def base(self) -> Arrays:
        """The weights and biases of the base now, by name. After `merge` these are the merged ones."""
        raise Unsupported("base()")

    def save(self, directory: str | PathLike[str]) -> None:
        """Write the adapter to an existing, empty directory."""
        raise Unsupported("save()")

    def merge(self) -> None:
        """Add what the adapter adds to the weights of the base."""
        raise Unsupported("merge()")
