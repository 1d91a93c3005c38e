"""The command `image build`: makes the image of a site from this checkout, by the way that the site's runtime needs.

.cache/images/
  wheels-<lock>/                 Python packages, fetched by the pip and the configuration of this machine
  base-<suite>-<arch>-<list>.tar only for `--base machine`
  cpu-x86_64-<recipe>.sif .json  for Apptainer and Singularity: the image and its record
  cpu-x86_64.sif                 a link to the image that was built last
  cpu-x86_64.<runtime>.json      for other runtimes: the record of the image in their store
  build.log                      the output of the last build
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gnnscale.contract.errors import UserError
from gnnscale.contract.places import images_folder
from workflow.config.site import SiteConfig
from workflow.images.build_checks import find_build_faults
from workflow.images.build_in_job import build_in_job
from workflow.images.build_oci import build_oci, has_recorded_image, with_builder
from workflow.images.build_sif import build_sif, has_whole_sif, point_to, sif_target
from workflow.images.command_log import CommandLog, Notify
from workflow.images.fault import raise_faults
from workflow.images.image_file import accelerator, has_image_file, image_command, locate_image
from workflow.images.recipe import Recipe, read_recipe


def build(site: SiteConfig, base: str, notify: Notify) -> None:
    """Build the image of this site and this checkout unless there is one."""
    recipe = read_recipe(accelerator(site), base)
    folder = locate_image(site).parent if has_image_file(site) else images_folder()
    if not is_present(site, recipe, notify):
        raise_faults(find_build_faults(site, recipe, folder))
        with hold_build_lock(folder):
            log = CommandLog(folder / "build.log", notify)
            log.path.write_text("")
            BUILDERS[site.container.runtime](site, recipe, log)


def is_present(site: SiteConfig, recipe: Recipe, notify: Notify) -> bool:
    """Tell whether the image of this recipe is there, and let the site's link point to its file."""
    if not has_image_file(site):
        return has_recorded_image(site, recipe, notify)
    if not has_whole_sif(site, recipe):
        return False
    point_to(locate_image(site), sif_target(site, recipe))
    notify(f"{sif_target(site, recipe)}: present")
    return True


def build_for_shifter(site: SiteConfig, recipe: Recipe, log: CommandLog) -> None:
    """Build in the store of podman, from where the image goes to Shifter through a registry, as Shifter wants it."""
    build_oci(with_builder(site), recipe, log)
    log.notify("Shifter takes images from a registry only; the next two commands bring it there:")
    log.notify(f"  {image_command('push')} --to docker://HOST/NAME:TAG")
    log.notify(f"  {image_command('pull')} --from docker://HOST/NAME@DIGEST, as the first will say")


BUILDERS = {
    "apptainer": build_sif,
    "singularity": build_sif,
    "podman": build_oci,
    "podman-hpc": build_oci,
    "shifter": build_for_shifter,
    "ce": build_in_job,
}


@contextmanager
def hold_build_lock(folder: Path) -> Iterator[None]:
    """Allow one build at a time, and remove what a killed one has left."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{folder}: another build is running here", "wait for it") from None
        for path in [*folder.glob("build-*"), *folder.glob("*.part")]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        yield
