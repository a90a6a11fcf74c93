"""Tells whether a running server applies an adapter: its log-probabilities are compared with those that are computed here.

    server.py         asks over HTTP
    served.py         what the server offers, and how a request chooses it
    truth.py          the right log-probabilities, of the base model and of adapters
    alternatives.py   what a server may do instead
    judge.py          which of them the answers come from, and what cannot be told
    asking.py         one answer after the other, and in mixed batches
    dynamic.py        adapters that are loaded, unloaded and scaled while the server runs
    calibrated.py     adapters of a known effect
"""
