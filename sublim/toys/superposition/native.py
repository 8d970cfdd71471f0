"""The fastest CPU engine of the superposition models: a C++ kernel that is compiled for this machine at first use.

It is kept beside the torch engine because it trains the default sweep in 8.9 s on two cores, where torch takes 69.6 s.
"""

import ctypes
import logging
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

from sublim.core.errors import UserError
from sublim.toys.superposition.config import SuperpositionConfig, compiler
from sublim.toys.superposition.steps import BETA1, BETA2, EPS, Cohort, Training, rate_table

log = logging.getLogger(__name__)
SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-std=c++17", "-shared", "-fPIC")


class Group(ctypes.Structure):
    """One group as the kernel sees it. The fields have the order of the C++ struct."""

    _fields_ = [
        ("key", ctypes.c_uint64),
        ("p", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("features", "batch", "models")),
        *((name, ctypes.c_void_p) for name in ("teacher", "weight", "full", "value", "mean", "square")),
        *((name, ctypes.c_void_p) for name in ("trained", "unablated")),
        *((name, ctypes.c_int64) for name in ("records", "loss_every")),
        *((name, ctypes.c_float) for name in ("beta1", "beta2", "eps")),
    ]


@cache
def library(hidden: int) -> ctypes.CDLL:
    """The kernel for models with `hidden` dimensions. Compiling takes one or two seconds.

    Raises UserError where there is no compiler or it fails.
    """
    command = compiler()
    if command is None:
        raise UserError("the native engine needs a C++ compiler (c++, g++ or clang++): install one or set engine=torch")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.so"
        done = subprocess.run(
            [command, *FLAGS, f"-DHIDDEN={hidden}", "-o", str(path), str(SOURCE)],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if done.returncode:
            raise UserError(f"{command} could not compile {SOURCE.name}: set engine=torch\n{done.stderr[-2000:]}")
        loaded = ctypes.CDLL(str(path))
    loaded.train_group.argtypes = [ctypes.POINTER(Group), ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    loaded.train_group.restype = None
    loaded.draw_batch.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int32, ctypes.c_float]
    loaded.draw_batch.restype = None
    log.info("compiled %s for %d hidden dimensions with %s", SOURCE.name, hidden, command)
    return loaded


class NativeEngine:
    """Trains a cohort in place, with one group per core at a time. Groups do not affect each other's results."""

    def __init__(self, cohort: Cohort, training: Training, config: SuperpositionConfig):
        assert all(tensor.is_contiguous() and tensor.dtype == torch.float32 for tensor in training)
        self.library = library(config.hidden)
        self.rates = rate_table(config)
        self.threads = config.threads or torch.get_num_threads()
        self.weight, self.full = cohort.weight.contiguous(), cohort.full.contiguous()
        self.teacher = None if cohort.teacher is None else cohort.teacher.contiguous()
        self.training = training  # keeps the memory that the groups point to
        self.groups = [self._group(cohort, config, index) for index in range(len(cohort.keys))]

    def _group(self, cohort: Cohort, config: SuperpositionConfig, index: int) -> Group:
        _, models, features = self.weight.shape
        return Group(
            key=int(cohort.keys[index]) % 2**64,
            p=float(cohort.p_active[index]),
            features=features,
            batch=config.batch_size,
            models=models,
            teacher=None if self.teacher is None else self.teacher[index].data_ptr(),
            weight=self.weight[index].data_ptr(),
            full=self.full.data_ptr(),
            **{name: tensor[index].data_ptr() for name, tensor in self.training._asdict().items()},
            records=self.training.trained.shape[-1],
            loss_every=config.loss_every,
            beta1=BETA1,
            beta2=BETA2,
            eps=EPS,
        )

    def run(self, start: int, stop: int) -> None:
        """Trains from step `start` up to `stop`."""
        rates = self.rates.ctypes.data
        with ThreadPoolExecutor(self.threads) as pool:
            waiting = [pool.submit(self.library.train_group, group, rates, start, stop) for group in self.groups]
            for done in waiting:
                done.result()
