"""Configuration nodes (a `_target_` and its arguments): their types, their names of earlier versions, modules of the user's."""
