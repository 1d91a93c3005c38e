"""TODO: say what a reader finds here."""

from __future__ import annotations

import shlex

from workflow.config.site import SiteConfig

IMAGE_HOME = "/opt/gnnscale"  # in every image; image.json in it says what the image is
# Which rank this is and where the others are; networks, GPUs, threads; what our own tests and users set on purpose.
PASSED_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_*",
    "PBS_*",
    "PALS_*",
    "PMI_*",
    "PMIX_*",
    "OMPI_*",
    "PRTE_*",
    "MV2_*",
    "HYDRA_*",
    "MPI_LOCALRANKID",
    "MPI_LOCALNRANKS",
    "I_MPI_*",
    "MPICH_*",
    "MPIR_*",
    "MPI4PY_*",
    "UCX_*",
    "FI_*",
    "NCCL_*",
    "RCCL_*",
    "CCL_*",
    "GLOO_*",
    "OMP_*",
    "KMP_*",
    "MALLOC_*",
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "HSA_*",
    "ZE_*",
    "SYCL_*",
    "ONEAPI_DEVICE_SELECTOR",
    "MIOPEN_*",
    "TORCH_*",
    "PYTORCH_*",
    "GNNSCALE_*",
    "PYTHONUNBUFFERED",
    "TZ",
)


SECRET_VARIABLES = ("SLURM_JWT", "PBS_AUTH_*")  # though a pattern above has them


def passed_pattern(site: SiteConfig) -> str:
    """A pattern of bash's `case`."""
    return "|".join(dict.fromkeys((*PASSED_VARIABLES, *site.env, *site.container.pass_env)))


def loop_over_passed(site: SiteConfig, act: str) -> str:
    """What is done with each that is set and may be passed."""
    return f"for name in $(compgen -e); do case $name in {'|'.join(SECRET_VARIABLES)}) ;; {passed_pattern(site)}) {act};; esac; done"


def fixed_variables(site: SiteConfig) -> dict[str, str]:
    return {"TMPDIR": "/tmp", "XDG_CACHE_HOME": "/tmp/.gnnscale", "PYTHONUNBUFFERED": "1"} | site.container.env


def clear_environment(site: SiteConfig) -> list[str]:
    """For a runtime that passes the whole environment: what the image sets stays, of the rest what may be passed."""
    own = "PATH|HOME|PWD|SHLVL|LD_LIBRARY_PATH|PYTHONPATH|NVIDIA_*|CUDA_*"
    lines = [
        f'for name in $(compgen -e); do case $name in {"|".join(SECRET_VARIABLES)}) unset "$name";; {own}|{passed_pattern(site)}) ;; '
        '*) unset "$name";; esac; done'
    ]
    return lines + [f"export {name}={shlex.quote(value)}" for name, value in image_variables().items()]


def image_variables() -> dict[str, str]:
    """What an image's own environment says; set again for runtimes that do not know it."""
    return {"PYTHONPATH": IMAGE_HOME, "PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
