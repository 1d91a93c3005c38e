"""Environment variables that a stage in a container gets, and the lines of bash that select them on the node."""

from __future__ import annotations

import shlex

from workflow.config.site import SiteConfig

IMAGE_HOME = "/opt/gnnscale"  # in every image; image.json in it describes the image
IMAGE_PYTHON = "/opt/venv/bin/python"
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LAUNCHER_VARIABLES = ("SLURM_*", "PBS_*", "PALS_*", "PMI_*", "PMIX_*", "OMPI_*", "PRTE_*", "MV2_*", "HYDRA_*")
MPI_VARIABLES = ("MPI_LOCALRANKID", "MPI_LOCALNRANKS", "I_MPI_*", "MPICH_*", "MPIR_*", "MPI4PY_*")
NETWORK_VARIABLES = ("UCX_*", "FI_*", "NCCL_*", "RCCL_*", "CCL_*", "GLOO_*")
CPU_VARIABLES = ("OMP_*", "KMP_*", "MALLOC_*")
VISIBLE_GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
GPU_VARIABLES = (*VISIBLE_GPU_VARIABLES, "HSA_*", "ZE_*", "SYCL_*", "ONEAPI_DEVICE_SELECTOR", "MIOPEN_*")
PROGRAM_VARIABLES = ("TORCH_*", "PYTORCH_*", "GNNSCALE_*", "PYTHONUNBUFFERED", "TZ")
PASSED_VARIABLES = (
    *RANK_VARIABLES,
    *LAUNCHER_VARIABLES,
    *MPI_VARIABLES,
    *NETWORK_VARIABLES,
    *CPU_VARIABLES,
    *GPU_VARIABLES,
    *PROGRAM_VARIABLES,
)
SECRET_VARIABLES = ("SLURM_JWT", "PBS_AUTH_*")  # never passed, though a pattern above matches them


def check_words(accelerator: str) -> list[str]:
    """Return the words that run the test of an image in it."""
    return [IMAGE_PYTHON, f"{IMAGE_HOME}/containers/check.py", accelerator]


def passed_pattern(site: SiteConfig) -> str:
    """Return a pattern of bash's `case` that matches the names of variables that may be passed."""
    return "|".join(dict.fromkeys((*PASSED_VARIABLES, *site.env, *site.container.pass_env)))


def loop_over_passed(site: SiteConfig, command: str) -> str:
    """Return a line of bash that runs `command` for each variable that is set and may be passed, as $name."""
    secret = "|".join(SECRET_VARIABLES)
    return f"for name in $(compgen -e); do case $name in {secret}) ;; {passed_pattern(site)}) {command};; esac; done"


def fixed_variables(site: SiteConfig) -> dict[str, str]:
    """Return the variables that are set in every container of the site."""
    return {"TMPDIR": "/tmp", "XDG_CACHE_HOME": "/tmp/.gnnscale", "PYTHONUNBUFFERED": "1"} | site.container.env


def clear_environment(site: SiteConfig) -> list[str]:
    """Return lines for a runtime that passes every variable: unset all but those of the image and those that may pass."""
    secret, own = "|".join(SECRET_VARIABLES), "PATH|HOME|PWD|SHLVL|LD_LIBRARY_PATH|PYTHONPATH|NVIDIA_*|CUDA_*"
    lines = [
        f'for name in $(compgen -e); do case $name in {secret}) unset "$name";; {own}|{passed_pattern(site)}) ;; '
        '*) unset "$name";; esac; done'
    ]
    return lines + [f"export {name}={shlex.quote(value)}" for name, value in image_variables().items()]


def image_variables() -> dict[str, str]:
    """Return the variables of an image's own environment, for runtimes that do not read it."""
    return {"PYTHONPATH": IMAGE_HOME, "PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
