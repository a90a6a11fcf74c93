"""The evidence of a failure in words: what the terminal and the page show of it, in one order."""

WORDS = {"case": "case", "needed": "only with", "what": "what", "got": "got", "want": "want"}


def evidence(failure: dict, message: str) -> list[tuple[str, str]]:
    """Pairs of a name and what stands beside it: the case, what was looked at, what came, what was wanted, error / bound."""
    found = [(words, str(failure[name])) for name, words in WORDS.items() if name in failure]
    error, bound = failure.get("error"), failure.get("bound")
    if error is not None and bound is not None:
        exact = f"{error:.3g} / 0: it must be equal bit for bit"
        found.append(("error / bound", f"{error:.3g} / {bound:.3g} = {error / bound:.3g}" if bound else exact))
    if message and str(failure.get("got")) not in message:
        found.append(("message", message))
    return found
