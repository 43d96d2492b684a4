"""The tiny models that a judge run and a training run start from."""

from tests.judges.conftest import tiny_judge
from tests.training.conftest import settled_imports, tiny_model

__all__ = ["settled_imports", "tiny_judge", "tiny_model"]
