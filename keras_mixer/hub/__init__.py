"""Whole models to files, folders and the Hugging Face Hub, their cards, and checks.

Which weights were published, and how they are fetched, is known to
`keras_mixer.checkpoints`.
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
from keras_mixer.hub.verification import (
    Report,
    verify,
)

__all__ = [
    "Report",
    "check_target",
    "from_pretrained",
    "push_to_hub",
    "read_model",
    "reading_arguments",
    "verify",
    "write_card",
    "write_folder",
    "write_model",
]
