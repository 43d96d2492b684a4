"""What the shared cache holds: JSON. Django's own choice is pickle, which would let whoever reaches
Redis run code in the web process."""

import json
from typing import Any


class JSONSerializer:
    """Numbers stay bare, so that Redis can count with them."""

    def dumps(self, value: Any) -> int | bytes:
        return value if type(value) is int else json.dumps(value).encode()

    def loads(self, data: bytes) -> Any:
        return json.loads(data)
