"""The student's own way into `cocomix.steer`."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cocomix.steer import Steering


class Steerable:
    """A model whose predicted concepts can be turned up and down."""

    def steer(self, steering: "Steering") -> AbstractContextManager[None]:
        """Within: forward passes and generation have their concepts changed.

        `with model.steer({123: Amplify(4.0), 7: Ablate(start=10)}): model.generate(...)`, or a list with a mapping
        for each row. See `cocomix.steer.steered`.

        Raises:
            CocomixError: on entering, where the model has no concepts that it uses, or not these.
        """
        from cocomix.steer.concept_logits import steered  # here, for that module is built on this package

        model: Any = self
        return steered(model, steering)
