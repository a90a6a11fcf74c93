"""Functions that several requirements share: they prepare a layer or a model and judge its answers. No requirement is here."""
