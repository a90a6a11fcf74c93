"""Test vectors: what a LoRA layer is given, and what it must answer, as JSON that needs none of this package.

    families    which vectors there are: a requirement, an operation, and the levels of the space that its cases have
    choose      draws their numbers from the seed
    layer, methods, prefixes   the operations, and how a subject is asked for each
    ways        three ways to the right answers of a layer; methods and prefixes have their own
    certify     the three ways agree, or there is no vector; the intervals of what is right and of what is accepted
    killers     which known faults a vector shows, found by running them
    files       how vectors lie on the disk
    export, lint, check   the three commands
"""

FORMAT = 1  # of the files
