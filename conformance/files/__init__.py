"""What an adapter file means: its formats, the truth of each, and what is wrong with it. FILES.md is the specification.

    container.py  gguf.py   the bytes of a file: names, shapes, dtypes, and arrays as slices
    clauses.py              the clauses of the specification, and the issues that a file can have
    meaning.py              what a file adds to which module: factors, rank, scale, and where the scale came from
    peft.py  kohya.py …     one file per format: from names and settings to the meaning
    reading.py              finds the format of a file or folder, and reads it
    known.py                what other programs are known to do with a file
    binary.py  writing.py   the bytes of new files; what a file means, in another format
    corpus/                 small files, valid and invalid, each about one clause, with the right answer
    exchange.py             what readers make of the corpus and of what writers write, by judge.py; each in a process: talk.py,
                            serve.py
    readers/  writers/      one module per library that reads or writes adapter files
    llama.py  merging.py    the model for readers that show no ΔW, and for merged checkpoints
    torch_model.py          a torch model of base weights, and ΔW of its modules, measured
    probe/                  does a running server apply an adapter?
"""
