"""How far from the truth an answer may be: rounding-error bounds, the spread of honest rounding, and the complex step."""
