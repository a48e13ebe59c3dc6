"""Images that the assistant made earlier in a conversation, where the model can see them.

The model reads media in messages of users only: an image that was drawn is changed like one that was attached. So
it stands before the words of the message that follows it.
"""

from typing import Any

from ming.messages import ROLES


def show_made_images(chat: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages of a chat, with images in messages of the assistant moved to the next message of the user.

    Args:
        chat: messages with `role` and `content`, a string or a list of items with a `type`.

    Raises:
        ValueError: no message of the user follows such an image.
    """
    shown: list[dict[str, Any]] = []
    waiting: list[dict[str, Any]] = []
    for message in chat:
        role, content = ROLES.get(str(message.get("role"))), message["content"]
        if role == "ASSISTANT" and isinstance(content, list):
            waiting += [item for item in content if item.get("type") == "image"]
            message = {**message, "content": [item for item in content if item.get("type") != "image"]}
        elif role == "HUMAN" and waiting:
            words = [{"type": "text", "text": content}] if isinstance(content, str) else content
            message, waiting = {**message, "content": [*waiting, *words]}, []
        shown.append(message)
    if waiting:
        raise ValueError("the last message holds an image of the assistant; add a message of the user behind it")
    return shown


__all__ = ["show_made_images"]
