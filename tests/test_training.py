import pytest

from keras_mixer.model import mlp_mixer
from keras_mixer.training import check_logits


def test_training_needs_logits(tiny):
    with pytest.raises(ValueError, match="classifier_activation=None"):
        check_logits(mlp_mixer(**tiny))
    check_logits(mlp_mixer(**tiny, classifier_activation=None))
