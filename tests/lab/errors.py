"""The one exception of the lab; its message is a sentence for a person: what failed, on what, what to do."""


class LabError(RuntimeError):
    """Something of the lab's own failed: a program, a namespace, a deadline."""
