"""The files of each published data set: address, size and checksum, as read in public documentation.

`origin` says where each address was read, and `tried` when it last worked. Checksums are those of the publishers, so a wrong
file is found whatever the address gives.
"""

from __future__ import annotations

from typing import NamedTuple

from gnnscale.contract.errors import UserError
from workflow.config.field_problems import suggest

META = "https://dl.fbaipublicfiles.com/opencatalystproject/data"
ZENODO = "https://zenodo.org/records"
FIGSHARE = "https://ndownloader.figshare.com/files"
OMAT_SUBSETS = (
    *("rattled-1000", "rattled-1000-subsampled", "rattled-500", "rattled-500-subsampled"),
    *("rattled-300", "rattled-300-subsampled", "aimd-from-PBE-1000-npt", "aimd-from-PBE-1000-nvt"),
    *("aimd-from-PBE-3000-npt", "aimd-from-PBE-3000-nvt", "rattled-relax"),
)
ALEXANDRIA_FILES = 50  # of the release 2024.12.15


class PublishedFile(NamedTuple):
    """One file as it is downloaded, and the name under which readers find it."""

    name: str
    url: str
    gigabytes: float  # about; for people and for the check of the disk; 0 = not known
    size: int | None = None  # exact, in bytes; None = not known from documentation
    md5: str = ""  # "" = none is published
    becomes: str = ""  # the file or folder that it is unpacked to; "" = it is read as it is
    unpacked_gigabytes: float = 0.0  # about; 0 = not known

    @property
    def final_name(self) -> str:
        return self.becomes or self.name


class PublishedSet(NamedTuple):
    """The files that belong together: a data set, or one of its published subsets."""

    name: str  # what is typed: the script in datasets/, and the subset behind a slash
    page: str  # where a person finds the files
    origin: str  # where addresses and checksums were read
    files: tuple[PublishedFile, ...]
    tried: str = ""  # the date on which the addresses were last tried; "" = never, as only their documentation was read

    @property
    def dataset(self) -> str:
        return self.name.split("/")[0]

    @property
    def gigabytes(self) -> float:
        """About the size of all files; 0 where that of one is not known."""
        sizes = [file.gigabytes for file in self.files]
        return sum(sizes) if all(sizes) else 0


def archive(name: str, url: str, gigabytes: float, unpacked: float = 0, md5: str = "") -> PublishedFile:
    """Return a tar that becomes a folder called as it is."""
    return PublishedFile(name, url, gigabytes, None, md5, name.split(".")[0], unpacked)


def s2ef_archive(subset: str, gigabytes: float, unpacked: float, md5: str) -> PublishedFile:
    return archive(f"s2ef_{subset}.tar", f"{META}/s2ef_{subset}.tar", gigabytes, unpacked, md5)


def qm7x_file(number: int, md5: str) -> PublishedFile:
    name = f"{number}.xz"
    return PublishedFile(name, f"{ZENODO}/4288677/files/{name}", 0, None, md5, f"{number}.hdf5")


def omat_archives(split: str, release: str, gigabytes: float) -> tuple[PublishedFile, ...]:
    """Return the tars of a split of OMat24, for which only the sum of the sizes is of interest."""
    each = round(gigabytes / len(OMAT_SUBSETS), 2)
    return tuple(
        archive(f"{name}.tar.gz", f"{META}/omat/{release}/omat/{split}/{name}.tar.gz", each) for name in OMAT_SUBSETS
    )


def alexandria_file(number: int) -> PublishedFile:
    name = f"alexandria_{number:03}.json.bz2"
    return PublishedFile(name, f"https://alexandria.icams.rub.de/data/pbe/2024.12.15/{name}", 0.06)


S2EF_VALIDATION = (
    s2ef_archive("val_id", 1.7, 8.3, "f57f7f5c1302637940f2cc858e789410"),
    s2ef_archive("val_ood_ads", 1.7, 8.2, "431ab0d7557a4639605ba8b67793f053"),
    s2ef_archive("val_ood_cat", 1.7, 8.3, "532d6cd1fe541a0ddb0aa0f99962b7db"),
    s2ef_archive("val_ood_both", 1.9, 9.5, "5731862978d80502bbf7017d68c2c729"),
)
QM7X_CHECKSUMS = (
    "b50c6a5d0a4493c274368cf22285503e",
    "4418a813daf5e0d44aa5a26544249ee6",
    "f7b5aac39a745f11436047c12d1eb24e",
    "26819601705ef8c14080fa7fc69decd4",
    "85ac444596b87812aaa9e48d203d0b70",
    "787fc4a9036af0e67c034a30ad854c07",
    "5ecce00a188410d06b747cb683d8d347",
    "c893ae88b8f5c32541c3f024fc1daa45",
)
OC20_PAGE = "https://fair-chem.github.io/catalysts/datasets/oc20.html"
OC20_ORIGIN = "fairchem, docs/catalysts/datasets/oc20.md"
OMAT_PAGE = "https://huggingface.co/datasets/facebook/OMAT24"
OMAT_ORIGIN = "fairchem, docs/inorganic_materials/datasets/omat24.md"
OMOL_PAGE = "https://huggingface.co/facebook/OMol25"
OMOL_ORIGIN = "OMol25, DATASET.md on Hugging Face"


def oc20_set(subset: str, *files: PublishedFile) -> PublishedSet:
    return PublishedSet(f"oc20/{subset}", OC20_PAGE, OC20_ORIGIN, files)


def omat_set(subset: str, *files: PublishedFile) -> PublishedSet:
    return PublishedSet(f"omat24/{subset}", OMAT_PAGE, OMAT_ORIGIN, files)


def omol_set(subset: str, gigabytes: float) -> PublishedSet:
    file = archive(f"{subset}.tar.gz", f"{META}/omol/250514/{subset}.tar.gz", gigabytes)
    return PublishedSet(f"omol25/{subset}", OMOL_PAGE, OMOL_ORIGIN, (file,))


SETS = (
    PublishedSet(
        "ani1x",
        "https://doi.org/10.6084/m9.figshare.c.4712477",
        "figshare article 10047041, version 1",
        (
            PublishedFile(
                "ani1x-release.h5", f"{FIGSHARE}/18112775", 5.6, 5_590_846_027, "98090dd6679106da861f52bed825ffb7"
            ),
        ),
    ),
    PublishedSet(
        "qm7x",
        f"{ZENODO}/4288677",
        "Zenodo record 4288677, checksums as in SchNetPack",
        (
            *(qm7x_file(1000 * (k + 1), md5) for k, md5 in enumerate(QM7X_CHECKSUMS)),
            PublishedFile(
                "DupMols.dat", f"{ZENODO}/4288677/files/DupMols.dat", 0.001, None, "5d886ccac38877c8cb26c07704dd1034"
            ),
        ),
    ),
    # A small training set is used alone, and divided by hash; with a larger one belong the published held-out sets.
    oc20_set("200K", s2ef_archive("train_200K", 0.344, 1.7, "f8d0909c2623a393148435dede7d3a46")),
    oc20_set("2M", s2ef_archive("train_2M", 3.4, 17, "953474cb93f0b08cdc523399f03f7c36"), *S2EF_VALIDATION),
    oc20_set("20M", s2ef_archive("train_20M", 34, 165, "863bc983245ffc0285305a1850e19cf7"), *S2EF_VALIDATION),
    oc20_set("all", s2ef_archive("train_all", 225, 1100, "12a7087bfd189a06ccbec9bc7add2bcd"), *S2EF_VALIDATION),
    oc20_set("rattled", s2ef_archive("rattled", 29, 136, "40431149b27b64ce1fb40cac4e2e064b")),
    oc20_set("md", s2ef_archive("md", 42, 306, "9fed845aaab8fb4bf85e3a8db57796e0")),
    PublishedSet(
        "oc22",
        "https://fair-chem.github.io/catalysts/datasets/oc22.html",
        "fairchem, docs/catalysts/datasets/oc22.md",
        (
            archive(
                "s2ef_total_train_val_test_lmdbs.tar.gz",
                f"{META}/oc22/s2ef_total_train_val_test_lmdbs.tar.gz",
                20,
                71,
                "ebea523c6f8d61248a37b4dd660b11e6",
            ),
        ),
    ),
    PublishedSet(
        "mptrj",
        "https://doi.org/10.6084/m9.figshare.23713842",
        "figshare article 23713842, version 2",
        (
            PublishedFile(
                *("MPtrj_2022.9_full.json", f"{FIGSHARE}/41619375", 12.2, 12_188_168_685),
                md5="50ead5f27f9a4f6beb7564c4188f1e9f",
            ),
        ),
    ),
    PublishedSet(
        "qm9",
        "https://doi.org/10.6084/m9.figshare.c.978904",
        "figshare collection 978904",
        (
            PublishedFile(
                *("dsgdb9nsd.xyz.tar.bz2", f"{FIGSHARE}/3195389", 0.086, 86_144_227),
                md5="ad1ebd51ee7f5b3a6e32e974e5d54012",
            ),
            PublishedFile(
                *("uncharacterized.txt", f"{FIGSHARE}/3195404", 0.0005, 486_752),
                md5="a361887bacb427b8a0ce7903d92a53b4",
            ),
        ),
    ),
    PublishedSet(
        "spice",
        f"{ZENODO}/10975225",
        "Zenodo record 10975225",
        (
            PublishedFile(
                *("SPICE-2.0.1.hdf5", f"{ZENODO}/10975225/files/SPICE-2.0.1.hdf5", 37.5, 37_479_271_148),
                md5="bfba2224b6540e1390a579569b475510",
            ),
        ),
    ),
    PublishedSet(
        "alexandria",
        "https://alexandria.icams.rub.de",
        "file names of the release 2024.12.15, PBE",
        tuple(alexandria_file(number) for number in range(ALEXANDRIA_FILES)),
    ),
    omat_set("train", *omat_archives("train", "241018", 185.8)),
    omat_set("validation", *omat_archives("val", "241220", 1.98)),
    omat_set("salex-train", archive("train.tar.gz", f"{META}/omat/241018/sAlex/train.tar.gz", 7.6)),
    omat_set("salex-validation", archive("val.tar.gz", f"{META}/omat/241018/sAlex/val.tar.gz", 0.41)),
    omol_set("train_4M", 19),
    omol_set("train", 489),
    omol_set("val", 20),
)
BY_NAME = {each.name: each for each in SETS}


def find_set(name: str) -> PublishedSet:
    """Return a published set by its name, or raise with the nearest known one."""
    if name in BY_NAME:
        return BY_NAME[name]
    subsets = [known for known in BY_NAME if known.split("/")[0] == name]
    hint = f"choose one of {', '.join(subsets)}" if subsets else suggest(name, list(BY_NAME))
    raise UserError(f"no published data set {name!r}; {hint}")
