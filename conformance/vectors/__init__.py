"""Test vectors: what a LoRA layer is given, and what it must answer, as JSON that needs none of this package.

    choose     which vectors there are: a requirement, an operation, and the levels of the space that its cases have
    layer, methods   the operations: how a subject is asked, and three ways to the right answer
    certify    the three ways agree, or there is no vector; the interval of what an honest layer may answer
    killers    which known faults a vector shows, found by running them
    files      how vectors and results lie on the disk
    export, lint, check   the three commands
"""

FORMAT = 1  # of the files
