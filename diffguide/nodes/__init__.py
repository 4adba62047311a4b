"""Configuration nodes (a `_target_` and its arguments): their types, names in earlier versions, and modules of the user."""
