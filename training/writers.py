"""The vLLM server that writes responses while a policy learns, if an administrator has named one.

Its address stands in the environment, so an own network is allowed; what nobody may reach (metadata
services, link-local addresses) is refused at every connection all the same.
"""

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from django.conf import settings

from labeling.addresses import check_allowed, connect
from training.ml.config import AnyRecipe
from training.ml.ppo_config import PPORecipe
from training.models import Run

if TYPE_CHECKING:
    from training.ml.vllm_generation import Writer


def check_generation(recipe: AnyRecipe) -> None:
    """Raises: ValueError for responses from a server where none is named, or named wrongly."""
    if not isinstance(recipe, PPORecipe) or recipe.generation != "vllm":
        return
    if not (settings.PREFLOOP_VLLM_URL and settings.PREFLOOP_VLLM_ADAPTERS):
        raise ValueError(
            "generation: no vLLM server is named; an administrator sets PREFLOOP_VLLM_URL and "
            "PREFLOOP_VLLM_ADAPTERS for the workers and the pages"
        )
    parts = urlsplit(settings.PREFLOOP_VLLM_URL)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("generation: PREFLOOP_VLLM_URL is no address such as http://gpu:8000/v1")


def writer_of(run: Run, recipe: AnyRecipe) -> "Writer | None":
    """What writes a run's responses; None where our own generation does.

    Raises: ValueError as `check_generation`, or where the folder of adapters cannot be made.
    """
    check_generation(recipe)
    if not isinstance(recipe, PPORecipe) or recipe.generation != "vllm":
        return None
    from training.ml.vllm_generation import GenerationServer, Writer

    adapters = Path(settings.PREFLOOP_VLLM_ADAPTERS)
    try:
        adapters.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"generation: the folder {adapters} cannot be written: {error}") from None
    server = GenerationServer(
        url=settings.PREFLOOP_VLLM_URL,
        adapters=adapters,
        adapters_there=settings.PREFLOOP_VLLM_ADAPTERS_THERE,
        key=settings.PREFLOOP_VLLM_KEY,
    )
    return Writer(
        server,
        f"prefloop-run{run.pk}",
        lambda host, port, timeout: connect(host, port, timeout, _check),
    )


def _check(address: str) -> None:
    check_allowed(address, own_network=True)
