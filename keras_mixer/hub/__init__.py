"""Whole models to files, folders and the Hugging Face Hub, their cards, and checks.

- `from_pretrained(source)`, `push_to_hub(model, repo_id)`: a published model.
- `read_model(source)`: the model in a file or folder of any kind, or on the Hub.
- `write_model(model, target)`: the same way back, by the ending of the target.
- `write_folder(model, folder)`: a model as it is published, with a card.
- `push_space(repo_id)`: the demo in the browser, as a Space.
- `verify(source)`: whether a model is what it says it is; gives a `Report`.

Files of unknown origin are looked at before they are opened: nothing in them is
executed, and neither time nor memory grows beyond what their arrays need. Which weights
were published, and how they are fetched, is known to `keras_mixer.checkpoints`.
"""

from keras_mixer.hub.card import (
    write_card,
)
from keras_mixer.hub.model_files import (
    check_target,
    read_model,
    reading_arguments,
    write_folder,
    write_model,
)
from keras_mixer.hub.publish import (
    from_pretrained,
    push_to_hub,
)
from keras_mixer.hub.space import push_space, write_space
from keras_mixer.hub.timm_files import save_timm
from keras_mixer.hub.verification import (
    Report,
    verify,
)

__all__ = [
    "Report",
    "check_target",
    "from_pretrained",
    "push_space",
    "push_to_hub",
    "read_model",
    "reading_arguments",
    "save_timm",
    "verify",
    "write_card",
    "write_folder",
    "write_model",
    "write_space",
]
