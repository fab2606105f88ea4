"""How the two kinds of stores are told apart."""

__all__ = ["MARK"]

#: The file that says that a directory is shared; in it, the version of its parts' form.
MARK = "revkit-store.json"
