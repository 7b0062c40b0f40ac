from __future__ import annotations

import pytest
from contract import ExecutorContract

from cryosam_dask.executors import SerialExecutor


class TestSerial(ExecutorContract):
    @pytest.fixture
    def executor(self):
        with SerialExecutor() as executor:
            yield executor
