"""What is awaited outside of the compiled core: `await` as Cython compiles it hides what an awaitable raises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable


async def awaited(awaitable: Awaitable[Any]) -> Any:
    """Return what an awaitable does."""
    return await awaitable
