"""Mods that a site adds to every client app that runs on its SuperNode."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable, Sequence

from flwr.app import Context, Message
from flwr.client.mod.utils import make_ffn
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable, Mod

__all__ = ["install"]


def install(make: Callable[[], Sequence[Mod]]) -> None:
    """Put mods around every client app that this process loads.

    Flower has no setting for this. A site calls it in its own command ``flwr-clientapp``, which the SuperNode starts
    for each message; ``docs/federation.md`` shows the command. The app runs in the same process, so this holds against
    an app that does not know about it, and not against one that undoes it on purpose.

    Args:
        make: function that returns the mods, outermost first. It is called at the first message, when the process has
            answered its SuperNode: loading torch may take longer than the SuperNode waits.
    """
    inside = ClientApp.__call__
    mods: list[Mod] = []

    def call(app: ClientApp, message: Message, context: Context) -> Message:
        def whole(one: Message, own: Context) -> Message:
            return inside(app, one, own)

        mods[:] = mods or make()
        whole.inside = _function_of(app, message)  # type: ignore[attr-defined]  (a recorder follows it to the app's mods)
        return make_ffn(whole, mods)(message, context)

    ClientApp.__call__ = call  # type: ignore[method-assign]


def _function_of(app: ClientApp, message: Message) -> ClientAppCallable | None:
    """Return the app's function for a message, with the app's own mods around it."""
    kind, _, action = message.metadata.message_type.partition(".")
    return app._call or app._registered_funcs.get(f"{kind}.{action or 'default'}")
