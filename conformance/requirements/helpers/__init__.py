"""What several requirements share: how a layer or a model is prepared and asked. No requirement stands here."""
