import gc
import subprocess
import sys

from sublim.core.quick_imports import without_collection


def said(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.strip()


def test_a_deferred_function_does_its_work_when_called_and_its_module_is_the_real_one_afterwards() -> None:
    program = """
import sys
from sublim.core.quick_imports import deferred_imports
with deferred_imports():
    from scipy.optimize import linear_sum_assignment
assert "scipy" not in sys.modules
print([side.tolist() for side in linear_sum_assignment([[4, 1], [2, 8]])])
import scipy.optimize
assert scipy.optimize.linear_sum_assignment is not linear_sum_assignment and scipy.optimize.OptimizeResult
"""
    assert said(program) == "[[0, 1], [1, 0]]"


def test_the_sampler_opens_without_scikit_learn_which_transformers_still_finds() -> None:
    program = """
import gc, sys
from pathlib import Path
from sublim.core.errors import UserError
from sublim.backends.opening import open_sampler
from sublim.inference.config import HfBackend
try:
    with open_sampler(HfBackend(), Path("nowhere")):
        pass
except (OSError, ValueError, UserError):
    pass
assert "sublim.backends.hf" in sys.modules and gc.isenabled() and gc.get_freeze_count() > 100_000
print({"sklearn", "sklearn.metrics", "scipy.optimize", "pandas", "boto3", "botocore"} & set(sys.modules))
from transformers.generation.candidate_generator import roc_curve
from transformers.utils import is_sklearn_available, is_scipy_available
print(is_sklearn_available(), is_scipy_available(), roc_curve([0, 1], [0.2, 0.9])[1].tolist())
from accelerate.commands.config import sagemaker
import boto3
assert sagemaker.boto3 is not boto3 and callable(boto3.session.Session)
print(sagemaker.boto3.client("s3", region_name="eu-west-1").meta.region_name)
"""
    assert said(program).splitlines() == ["set()", "True True [0.0, 1.0, 1.0]", "eu-west-1"]


def test_no_stand_in_is_made_for_what_is_not_installed() -> None:
    program = """
import importlib.util
from sublim.core.quick_imports import deferred_imports
with deferred_imports(("nowhere", "nowhere.at.all")):
    print(importlib.util.find_spec("nowhere"))
"""
    assert said(program) == "None"


def test_transformers_finds_the_same_models_and_versions_when_it_searches_less() -> None:
    program = """
import hashlib, importlib.metadata, json
from contextlib import nullcontext
from sublim.core.quick_imports import without_search
ask = importlib.metadata.packages_distributions
with MANNER():
    import transformers
    import transformers.models
assert importlib.metadata.packages_distributions is ask
from transformers.utils import import_utils
names = [{name: sorted(module._object_missing_backend.get(name, [])) for name in dir(module)} for module in
         (transformers, transformers.models)]
versions = {name: import_utils._is_package_available(name, return_version=True) for name in (
    "torch", "accelerate", "peft", "numpy", "huggingface_hub", "PIL", "sklearn", "yaml", "nowhere", "triton")}
assert (import_utils.create_import_structure_from_path.cache_info().hits > 0) == (MANNER is without_search)
print(json.dumps([len(names[0]), hashlib.sha256(json.dumps(names, sort_keys=True).encode()).hexdigest(), versions]))
assert dict(import_utils.PACKAGE_DISTRIBUTION_MAPPING) == ask()
"""
    quick, plain = (said(program.replace("MANNER", manner)) for manner in ("without_search", "nullcontext"))
    assert quick == plain


def test_collections_stay_as_they_are_where_torch_is_there_already() -> None:
    import torch

    assert torch
    gc.unfreeze()  # the tests' own, of which one may die meanwhile
    try:
        with without_collection():
            assert gc.isenabled()
        assert gc.get_freeze_count() == 0
    finally:
        gc.freeze()
