"""The kinds of inputs: how each is made, and how it is tried."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from . import arguments, conversations, files, server
from .outcomes import judged


@dataclass(frozen=True)
class Kind:
    """A kind of inputs.

    Args:
        recipes: makes the strategy of its recipes.
        trial: makes the input of a recipe and tries it.
        prepare: makes what all trials share, such as a model.
    """

    recipes: Callable[[], SearchStrategy]
    trial: Callable[[Any], None]
    prepare: Callable[[], Any]


KINDS = {
    "conversation": Kind(conversations.conversations, conversations.try_conversation, conversations.processor),
    "file": Kind(files.files, files.try_file, files.seeds),
    "features": Kind(arguments.passes, arguments.try_pass, arguments.thinker),
    "settings": Kind(arguments.settings, arguments.try_settings, arguments.thinker),
    "output": Kind(arguments.outputs, arguments.try_output, arguments.omni),
    "handler": Kind(arguments.requests, arguments.try_request, arguments.handler),
    "server": Kind(server.cases, server.try_case, server.client),
}


def run(
    kind: str, inputs: int, number: int, before: Callable[[Any], None], after: Callable[[Any, str, str], None]
) -> None:
    """Try recipes of a kind.

    Args:
        number: the seed; the same one makes the same recipes.
        before, after: called with every recipe; the latter with its outcome and what it was, too.
    """
    chosen = KINDS[kind]
    chosen.prepare()
    options = {"deadline": None, "database": None, "phases": [Phase.generate], "max_examples": inputs}

    @seed(number)
    @settings(**options, suppress_health_check=list(HealthCheck))
    @given(chosen.recipes())
    def tries(recipe: Any) -> None:
        before(recipe)
        after(recipe, *judged(lambda: chosen.trial(recipe)))

    tries()
