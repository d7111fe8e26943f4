import os

import keras

from keras_mixer.benchmark.machine import describe_machine


def test_it_says_what_it_runs_on():
    machine = describe_machine()
    name, version = machine["backend"].split()
    assert name == keras.config.backend()
    assert version[0].isdigit()
    assert machine["keras"] == keras.version()
    assert machine["devices"]
    cores = int(machine["processor"].rsplit(", ", 1)[1].split()[0])
    assert 1 <= cores <= (os.cpu_count() or 1)
