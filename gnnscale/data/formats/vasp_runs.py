"""VASP's vasprun.xml, read one ionic step at a time, and its OUTCAR, also inside a zip archive or compressed."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple
from xml.etree import ElementTree

import numpy as np
from ase.data import atomic_numbers

from gnnscale.atoms import units
from gnnscale.data.formats.ase_images import image_frames
from gnnscale.data.formats.extxyz import open_bytes
from gnnscale.data.formats.own_structures import OwnFrame
from gnnscale.data.formats.pieces import SkipStructure
from gnnscale.data.formats.raw_files import Location
from gnnscale.data.formats.structure_counts import count_word, count_words
from gnnscale.data.formats.vasp_names import is_outcar, is_vasprun, without_twins


class Run(NamedTuple):
    """A vasprun.xml, or else an OUTCAR, which may be a member of a zip archive."""

    member: str
    is_xml: bool


def list_members(path: Path) -> list[Run]:
    """Return the runs in a zip archive."""
    with zipfile.ZipFile(path) as archive:
        names = [PurePosixPath(name) for name in archive.namelist() if not name.startswith("__MACOSX/")]
    runs = [name for name in names if is_vasprun(name.name) or is_outcar(name.name)]
    return [Run(str(name), is_vasprun(name.name)) for name in without_twins(runs)]


def count_steps(location: Location, run: Run) -> float:
    """Return the number of ionic steps, estimated if the run is long."""
    word = b"<calculation>" if run.is_xml else b"TOTAL-FORCE"
    if run.member:
        with zipfile.ZipFile(location.path) as archive, archive.open(run.member) as file:
            return count_word(file, word, file.tell, archive.getinfo(run.member).file_size)
    return count_words(location.path, word)


@contextmanager
def open_run(location: Location, run: Run) -> Iterator[IO[bytes]]:
    if not run.member:
        with open_bytes(location.path) as file:
            yield file
        return
    with zipfile.ZipFile(location.path) as archive, archive.open(run.member) as member:
        yield member


def read_run(location: Location, run: Run, limit: int | None, skip: SkipStructure) -> Iterator[tuple[str, OwnFrame]]:
    """Yield (place, frame) of the ionic steps of a run. The energy is that extrapolated to zero smearing, as ASE has it."""
    with open_run(location, run) as file:
        if run.is_xml:
            frames = read_vasprun(location, file, skip)
        else:
            frames = image_frames(io.TextIOWrapper(file, errors="replace"), "vasp-out")
        for number, frame in enumerate(islice(frames, limit)):
            location.where = f"{run.member} step {number}".lstrip()
            yield location.where, frame


def read_vasprun(location: Location, file: IO[bytes], skip: SkipStructure) -> Iterator[OwnFrame]:
    """Yield the ionic steps. A run that was killed ends in the middle of one, which is counted as skipped."""
    numbers, pressure = np.empty(0, int), 0.0
    try:
        for _, element in ElementTree.iterparse(file, ("end",)):
            if element.tag == "atominfo":
                rows = element.findall("array[@name='atoms']/set/rc")
                numbers = np.array([atomic_numbers[(row[0].text or "").strip()] for row in rows])
            elif element.tag == "parameters":
                pressure = float(element.findtext(".//i[@name='PSTRESS']") or 0.0)
            elif element.tag == "calculation":
                yield to_frame(element, numbers, pressure)
            if element.tag in ("calculation", "parameters"):
                element.clear()
    except ElementTree.ParseError as error:
        if not len(numbers):
            raise location.fault(f"no XML of VASP ({error})") from None
        skip("the step at which a run of VASP was cut")
    if not len(numbers):
        raise location.fault("XML, but none of VASP: no atominfo")


def to_frame(step: ElementTree.Element, numbers: np.ndarray, pressure: float) -> OwnFrame:
    """Convert a step. `energy/e_fr_energy` contains the work against PSTRESS (kbar), and e_0_energy there may be wrong."""
    cell = read_rows(step, "structure/crystal/varray[@name='basis']")
    fractional = read_rows(step, "structure/varray[@name='positions']")
    last = step.findall("scstep/energy")[-1]
    free = read_number(step, "energy/i[@name='e_fr_energy']") - pressure * units.KBAR * np.linalg.det(cell)
    smearing = read_number(last, "i[@name='e_0_energy']") - read_number(last, "i[@name='e_fr_energy']")
    values: dict[str, float | np.ndarray] = {"energy": free + smearing, "free_energy": free}
    if step.find("varray[@name='stress']") is not None:  # kbar, positive in compression
        values["stress"] = -units.KBAR * read_rows(step, "varray[@name='stress']")
    columns = {}
    if step.find("varray[@name='forces']") is not None:
        columns["forces"] = read_rows(step, "varray[@name='forces']")
    return OwnFrame(numbers, fractional @ cell, cell, np.ones(3, bool), values, columns)


def read_rows(step: ElementTree.Element, path: str) -> np.ndarray:
    return np.array([(row.text or "").split() for row in step.findall(f"{path}/v")], float)


def read_number(step: ElementTree.Element, path: str) -> float:
    return float(step.findtext(path) or "nan")
