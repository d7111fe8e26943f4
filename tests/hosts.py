"""Two processes on this machine that take each other for hosts."""

import json
import socket

import keras

# What `--distribute` is called there; on JAX each host has two devices.
TWO_HOSTS = {"jax": "model:2", "tensorflow": "multiworker", "torch": "ddp"}[
    keras.config.backend()
]


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def environment(index, ports):
    """How each backend learns of two processes on this machine."""
    addresses = [f"127.0.0.1:{port}" for port in ports]
    cluster = {
        "cluster": {"worker": addresses},
        "task": {"type": "worker", "index": index},
    }
    return {
        "TF_CONFIG": json.dumps(cluster),
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": addresses[0],
        "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
        "KERAS_DISTRIBUTION_PROCESS_ID": str(index),
        "JAX_NUM_CPU_DEVICES": "2",
        "RANK": str(index),
        "LOCAL_RANK": str(index),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(ports[0]),
    }
