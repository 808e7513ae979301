"""The student's own way into `cocomix.steering`."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cocomix.model.plan import Steering


class Steerable:
    """A model whose predicted concepts can be turned up and down."""

    def steer(self, steering: "Steering") -> AbstractContextManager[None]:
        """Within: forward passes and generation have their concepts changed.

        `with model.steer({123: Amplify(4.0), 7: Ablate(start=10)}): model.generate(...)`, or a list with a mapping
        for each row. See `cocomix.model.steered`.

        Raises:
            CocomixError: on entering, where the model has no concepts that it uses, or not these.
        """
        from cocomix.model.concept_logits import steered

        model: Any = self
        return steered(model, steering)
