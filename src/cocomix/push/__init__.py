"""A trained student, its model card with lineage, and the way to the hub."""

from cocomix.push.upload import push_student

__all__ = ["push_student"]
