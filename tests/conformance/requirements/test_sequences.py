"""Sequences of operations on layers that do not offer everything in every state."""

from dataclasses import replace

import pytest

from conformance.mutants import LayerSubject
from conformance.mutants.honest import Honest
from conformance.requirements.helpers.sequences import follow
from conformance.subject import Unsupported
from conformance.truth import lattice
from conformance.truth.compare import Mismatch
from conformance.truth.space import PLAIN

SEQUENCES = (
    ("merge", "set_adapter", "forward", "unmerge"), ("save", "merge", "save", "load_fresh"),
    ("save", "merge", "forward", "load_fresh", "merge"), ("backward", "step", "merge", "eval", "train"),
)


class PlainWhenMerged(Honest):
    """A merge leaves a layer without factors, which trains its W, and cannot be saved or unmerged."""

    def there(self):
        if self.merged:
            raise Unsupported("factors of a merged layer")

    def adapter(self):
        self.there()
        return super().adapter()

    def set_adapter(self, arrays):
        self.there()
        super().set_adapter(arrays)

    def save(self, directory):
        self.there()
        super().save(directory)

    def unmerge(self):
        raise Unsupported("unmerge()")

    def trainable(self):
        return {"W": self.W.shape} if self.merged else super().trainable()


class WrongWhenMerged(PlainWhenMerged):
    """Merges twice the product."""

    def delta_weight(self):
        return 2 * super().delta_weight()


@pytest.mark.parametrize("operations", SEQUENCES)
def test_a_layer_that_is_plain_when_merged_is_judged_by_what_it_computes(operations):
    case = replace(lattice.build(PLAIN, 0), operations=operations)
    follow(LayerSubject(PlainWhenMerged), case, exact=False)
    with pytest.raises(Mismatch, match="^y after "):
        follow(LayerSubject(WrongWhenMerged), case, exact=False)
