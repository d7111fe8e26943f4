import io
import time

import pytest
from rich.console import Console

from keras_mixer.training.progress import Progress


class Clock:
    """Every look at it is half a second later."""

    now = 0.0

    def __call__(self):
        self.now += 0.5
        return self.now


@pytest.fixture
def shown(monkeypatch):
    monkeypatch.setattr("keras_mixer.training.progress.time.perf_counter", Clock())

    def show(batches=(0, 1, 2, 3), terminal=False, **arguments):
        file = io.StringIO()
        console = Console(
            file=file, force_terminal=terminal, width=200, highlight=False
        )
        given = {"total_steps": 12, "steps_per_epoch": 4, "batch_size": 32}
        progress = Progress(**{**given, **arguments}, console=console)
        with progress:
            progress.on_epoch_begin(1)
            for batch in batches:
                progress.on_train_batch_end(batch, {"loss": 0.5})
            progress.on_epoch_end(1, {"loss": 0.5, "images_per_second": 64.0})
        return progress, file.getvalue()

    return show


@pytest.mark.backend_free
def test_a_file_gets_one_line_per_interval(shown):
    _, text = shown()
    # Three steps of 32 images in 1.5 s; four more to go.
    assert text == "step 8/12  loss 0.5  64 images/s  0:00:02 left\n"


@pytest.mark.backend_free
def test_a_terminal_gets_a_bar_and_keeps_the_line(shown):
    _, text = shown(terminal=True)
    assert "━" in text
    assert "step 8/12  loss 0.5  64 images/s  0:00:02 left" in text


@pytest.mark.backend_free
def test_the_first_step_does_not_count(shown):
    progress, text = shown(batches=[0])
    assert progress.images_per_second != progress.images_per_second
    assert text == "step 5/12  loss 0.5\n"


@pytest.mark.backend_free
def test_two_steps_may_be_seen_to_end_together(shown):
    progress, text = shown(batches=[0, 1])
    assert "images/s" not in text
    # Nothing is compiled any more: the next interval counts from its beginning.
    progress.on_epoch_begin(2)
    progress.on_train_batch_end(0, {"loss": 0.5})
    progress.on_train_batch_end(1, {"loss": 0.5})
    assert progress.images_per_second == pytest.approx(2 * 32 / 1.0)


@pytest.mark.backend_free
def test_steps_may_be_reported_out_of_order(shown):
    progress, text = shown(batches=[0, 2, 1, 3])
    assert "step 8/12" in text
    assert progress.images_per_second == pytest.approx(3 * 32 / 1.0)


@pytest.mark.backend_free
def test_accumulated_batches_are_counted_as_steps(shown):
    _, text = shown(batches_per_step=2)
    assert text.startswith("step 4/6 ")


@pytest.mark.backend_free
def test_the_last_interval_has_no_time_left(shown):
    _, text = shown(total_steps=8)
    assert text == "step 8/8  loss 0.5  64 images/s\n"


@pytest.mark.backend_free
def test_quiet_is_quiet(monkeypatch, capsys):
    progress = Progress(total_steps=4, steps_per_epoch=4, batch_size=1, quiet=True)
    with progress:
        progress.on_epoch_begin(0)
        for batch in range(4):
            progress.on_train_batch_end(batch, {"loss": 1.0})
        progress.on_epoch_end(0, {"loss": 1.0})
    assert capsys.readouterr() == ("", "")
    assert progress.images_per_second > 0


@pytest.mark.backend_free
def test_silence_is_filled(monkeypatch):
    """While the first step is compiled, or one takes long."""
    monkeypatch.setattr("keras_mixer.training.progress._SECONDS_BETWEEN_LINES", 0.6)
    file = io.StringIO()
    console = Console(file=file, force_terminal=False, width=200, highlight=False)
    progress = Progress(
        total_steps=40, steps_per_epoch=40, batch_size=1, console=console
    )
    with progress:
        progress.on_epoch_begin(0)
        time.sleep(1.3)
        progress.on_train_batch_end(0, {"loss": 2.0})
        progress.on_train_batch_end(1, {"loss": 2.0})
        time.sleep(1.3)
    lines = file.getvalue().splitlines()
    assert lines[0] == "step 0/40  starting"
    assert lines[-1].startswith("step 2/40  loss 2.0000")
    assert len(lines) >= 2
