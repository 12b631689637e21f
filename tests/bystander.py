"""Somebody who must be answered, and rightly, whatever others do to the server."""

from __future__ import annotations

import threading

import graphs
import numpy as np

import blindai


class Bystander(threading.Thread):
    """Adds numbers on the server, again and again, until it is stopped."""

    def __init__(self, client: blindai.Client):
        super().__init__()
        self.client = client
        self.answered = 0
        self.failures: list[str] = []
        self.ended = threading.Event()
        client.models.upload(graphs.add(["n"]), name="bystander")
        self.start()

    def run(self) -> None:
        ones = np.ones(100, np.float32)
        while not self.ended.wait(0.02):
            try:
                answer = self.client.infer("bystander", {"a": ones, "b": ones})["y"]
                assert (answer == 2).all()
                self.answered += 1
            except Exception as error:
                self.failures.append(repr(error))

    def stop(self) -> None:
        self.ended.set()
        self.join()
