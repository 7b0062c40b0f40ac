"""How many cores a thread computes with."""

from __future__ import annotations

import threading


def compute_alone() -> None:
    """Have the thread that calls this compute with one core from now on, where several threads compute at once.

    Threads of a library that wait for each other at every step lose more than they gain as soon as anything else uses
    their cores.
    """
    import torch

    others = torch.get_num_threads()
    torch.set_num_threads(1)
    # which is also what threads begin with that are started later: those are to be as before
    before = threading.Thread(target=torch.set_num_threads, args=(others,))
    before.start()
    before.join()
