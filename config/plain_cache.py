"""The cache that the web processes share in Redis. Nothing in it is needed: what is away is counted
anew."""

import json
import logging
from collections.abc import Callable
from typing import Any

from django.core.cache.backends.redis import RedisCache

logger = logging.getLogger(__name__)


class JSONSerializer:
    """Django's own choice is pickle, which would let whoever reaches Redis run code in the web
    process. Numbers stay bare, so that Redis can count with them."""

    def dumps(self, value: Any) -> int | bytes:
        return value if type(value) is int else json.dumps(value).encode()

    def loads(self, data: bytes) -> Any:
        return json.loads(data)


class SharedCache(RedisCache):
    """Redis that may be away: no page fails by it. Nothing is found then, nothing kept, nothing
    taken as added, and what is to be counted is not there, as if it had just been evicted."""

    def get(self, key: str, default: Any = None, version: int | None = None) -> Any:
        return _unless_away(lambda: super(SharedCache, self).get(key, default, version), default)

    def set(self, key: str, value: Any, *how: Any, **more: Any) -> None:
        _unless_away(lambda: super(SharedCache, self).set(key, value, *how, **more), None)

    def add(self, key: str, value: Any, *how: Any, **more: Any) -> bool:
        return bool(
            _unless_away(lambda: super(SharedCache, self).add(key, value, *how, **more), False)
        )

    def incr(self, key: str, delta: int = 1, version: int | None = None) -> int:
        """Raises: ValueError where there is nothing to count."""
        counted = _unless_away(lambda: super(SharedCache, self).incr(key, delta, version), None)
        if counted is None:
            raise ValueError(f"{key} cannot be counted: Redis is away")
        return int(counted)

    def delete(self, key: str, version: int | None = None) -> bool:
        return bool(_unless_away(lambda: super(SharedCache, self).delete(key, version), False))


def _unless_away(do: Callable[[], Any], otherwise: Any) -> Any:
    from redis.exceptions import RedisError

    try:
        return do()
    except RedisError as error:
        logger.warning("the shared cache is away: %s", error)
        return otherwise
