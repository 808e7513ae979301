"""What all configuration sections share."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values are frozen after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)
