"""Opening a backend: a sampler for a base and, if given, trained weights and steering."""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import cast

from sublim.backends.vllm.environment import set_environment
from sublim.core.errors import UserError
from sublim.core.quick_imports import deferred_imports, without_collection, without_search
from sublim.inference.config import Backend, FakeBackend, HfBackend, OpenAIBackend, VllmBackend
from sublim.inference.device import start_context
from sublim.inference.sampler import Sampler, Steerable
from sublim.residual.edits import Steering
from sublim.training.checkpoints import checkpoint


@contextmanager
def open_sampler(
    backend: Backend,
    base: Path,
    *,
    weights: Path | None = None,
    scratch: Path | None = None,
    steering: Steering | None = None,
    vectors: Path | None = None,
) -> Generator[Sampler]:
    """A sampler on `base`, or on the model in `weights`.

    `weights` is an adapter, a full model, or the payload of a training, whose last checkpoint is then used. `scratch`
    is the stage's scratch folder, in which the openai backend keeps answers as they arrive. `steering` names edits of
    the residual stream, and `vectors` is the payload or file with their vectors. To try several steerings on a model
    that is loaded once, use `open_steerable`.
    """
    if (steering is None) != (vectors is None):
        raise UserError("steering needs both its settings and a payload of vectors: give the two, or neither")
    if steering is not None and vectors is not None:
        with open_steerable(backend, base, weights=weights) as steerable:
            steerable.steer(steerable.edits(steering, vectors))
            yield steerable
        return
    with _opened(backend, base, weights, scratch) as sampler:
        yield sampler


@contextmanager
def open_steerable(backend: Backend, base: Path, *, weights: Path | None = None) -> Generator[Steerable]:
    """A sampler whose residual stream can be edited. Raises UserError for a backend that cannot do this."""
    if isinstance(backend, FakeBackend | OpenAIBackend):
        raise UserError(f"the {backend.kind} backend has no residual stream to steer: take hf or vllm")
    if isinstance(backend, VllmBackend):
        # CUDA graphs that were captured without the edits would run without them.
        backend = backend.model_copy(update={"eager": True})
    with _opened(backend, base, weights, None) as sampler:
        yield cast(Steerable, sampler)


def _opened(
    backend: Backend, base: Path, weights: Path | None, scratch: Path | None
) -> AbstractContextManager[Sampler]:
    if weights is not None and any(weights.glob("update-*")):
        weights = checkpoint(weights)
    match backend:
        case HfBackend():
            start_context()
            with without_collection(), deferred_imports(), without_search():
                from sublim.backends.hf import open_hf

            return open_hf(backend.resolved(), base, weights)
        case VllmBackend():
            set_environment()
            from sublim.backends.vllm.sampler import open_vllm

            return open_vllm(backend.resolved(), base, weights)
        case OpenAIBackend():
            from sublim.backends.openai.sampler import open_openai

            return open_openai(backend, base, weights, scratch)
        case FakeBackend():
            from sublim.backends.fake import FakeSampler

            return nullcontext(FakeSampler(backend, weights))
