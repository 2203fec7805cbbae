"""The model of a command, and the packages that a command needs."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from ..errors import as_user_error
from ..models import outputs
from ..models.networks import Network

if TYPE_CHECKING:
    from ..inference import segment

NEEDS_CLI = "this command needs Pillow and safetensors: pip install 'lwrn-fast[cli]'"


def importing(needs: str) -> AbstractContextManager[None]:
    """Turn an ImportError within into a UserError that ends with what the command needs."""
    return as_user_error(lambda error: f"{error}; {needs}", ImportError)


def build(options: "segment.Options", announce: bool = True) -> tuple[Network, bool]:
    """Return the model of these options and whether it is trained. announce: print both in a line."""
    from ..inference import segment

    model, trained = segment.build(options)
    if announce:
        weights = "trained" if trained else "UNTRAINED"
        print(f"{model.name}, {outputs.classes(model.num_classes)}, {weights} weights", flush=True)
    return model, trained
