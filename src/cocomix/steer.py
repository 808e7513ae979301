"""Deprecated: renamed `cocomix.steering`; kept for one version."""

import warnings

from cocomix.steering import *  # noqa: F403
from cocomix.steering import __all__ as __all__

warnings.warn("cocomix.steer is deprecated; import from cocomix.steering", FutureWarning, stacklevel=2)
