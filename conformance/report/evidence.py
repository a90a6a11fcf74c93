"""The evidence in words, as the terminal and the page show it: of a failure, in one order, and of a sweep of the space."""

from conformance.truth.space import STRENGTH

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


def of_the_space(swept: dict) -> str:
    """How many cases a sweep has lived, and what they hold, or why some were left."""
    words = f"the space: {swept['lived']} of {swept['cases']} cases"
    late = swept.get("late", 0)  # not in the reports of earlier versions
    if swept["swept"] < swept["parts"]:
        words += f", {swept['parts'] - swept['swept']} of {swept['parts']} parts broke off"
    elif not swept["left"]:
        words += f"; they hold {STRENGTH[swept['exact']]}"
    if late:
        words += f"; there was no time for {late}, a longer --timeout gives more"
    if explained := swept["left"] - late:
        words += f"; {explained} were left out after failures" if "late" in swept else ""
    return words
