"""What stands for a character where the output is ASCII, as with LANG=C: α is alpha and · is *. A formula can still be read."""

import codecs
import unicodedata

NAME = "conformance"  # of the error handler
WORDS = {
    "·": "*", "×": "x", "⊙": "*", "∘": "o", "→": "->", "←": "<-", "↦": "|->", "⇒": "=>", "⇔": "<=>", "≤": "<=", "≥": ">=",
    "≠": "!=", "≈": "~", "−": "-", "–": "-", "—": "-", "±": "+-", "√": "sqrt ", "∈": "in", "∉": "not in", "Σ": "sum ",
    "∑": "sum ", "∏": "prod ", "∪": "or", "∩": "and", "∞": "inf", "‖": "|", "⟨": "<", "⟩": ">", "½": "1/2", "′": "'", "∂": "d",
    "Δ": "d", "Θ": "Theta", "α": "alpha", "β": "beta", "γ": "gamma", "ε": "eps", "λ": "lambda", "μ": "mu", "π": "pi",
    "σ": "sigma", "“": '"', "”": '"', "‘": "'", "’": "'", "§": "section ", "✓": "yes", "✗": "no",
}


def register() -> None:
    """Makes the error handler known, so that a stream can use it."""
    codecs.register_error(NAME, replaced)


def replaced(error: UnicodeError) -> tuple[str, int]:
    """The error handler: words for the characters that the output cannot show. What is raised gets a ^ before it: xᵀ is x^T."""
    assert isinstance(error, UnicodeEncodeError)
    found, raised = "", False
    for character in error.object[error.start : error.end]:
        above = unicodedata.decomposition(character).startswith("<super>")
        found += "^" * (above and not raised) + _word(character)
        raised = above
    return found, error.end


def _word(character: str) -> str:
    parts = [character] if character in WORDS else unicodedata.normalize("NFKD", character)  # é is e and an accent
    return "".join(WORDS.get(part, part if part.isascii() else "?") for part in parts if not unicodedata.combining(part))
