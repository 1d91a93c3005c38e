"""The files of each published data set: address, size and checksum, as read in public documentation.

`origin` says where each address was read, and `tried` when it last worked. Checksums are those of the publishers, or of the file
at one commit of a repository, so a wrong file is found whatever the address gives.
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

    name: str  # what is typed: mostly the script in datasets/, and the subset behind a slash
    page: str  # where a person finds the files
    origin: str  # where addresses and checksums were read
    files: tuple[PublishedFile, ...]
    tried: str = ""  # the date on which the addresses were last tried; "" = never, as only their documentation was read
    script: str = ""  # in datasets/, where it is one for data of any origin and the name does not say it
    licence: str = ""  # where the card of the script does not say it

    @property
    def dataset(self) -> str:
        return self.script or self.name.split("/")[0]

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


# Sets of the study `benchmarks`: small files in repositories of their authors or of others, each at one commit. No checksums are
# published there; those here are of the files as they were found at that commit.
GITHUB = "https://raw.githubusercontent.com"
BPA3_FILES = (
    ("train_300K.xyz", 1_504_880, "f78c925a4dcd8997d3ac14b3b4fd6752"),
    ("train_mixedT.xyz", 1_504_818, "3e10b0941f209697c417f74437ea47b4"),
    ("iso_atoms.xyz", 504, "dcb566f6760236a728c9e14c049fc0b6"),
)
ETHANOL_FILES = (
    ("train.xyz", 1_115_876, "4d8df4fe5fd3a273a1f21232416d4ec3"),
    ("test_MD.xyz", 1_110_863, "4bb5e09252a53317ccbb513a4665d40c"),
    ("test_dimers.xyz", 110_276, "62490307e5e5fa48c61c91f5ec8b538e"),
    ("test_H_removal.xyz", 38_519, "fb57c9609beebf13e900eb1263c91465"),
    ("test_norm_mode_874.xyz", 24_180, "b73e498c0cd1f712fa54a657c74d4ed6"),
    ("test_norm_mode_3005.xyz", 11_769, "e86b1b36feefdd377cf632d842cc45b1"),
    ("train_eth_meth.xyz", 1_330_730, "47bfffe55522693b6559a81193c4d0b3"),
    ("test_eth_meth.xyz", 1_209_446, "f0da01aaab635fb1426ddbd3a5375cc8"),
    ("isolated_atoms.xyz", 608, "f43b763e3dffefec645077cf54ee3a59"),
)
ALLOY_FILES = (
    ("MoTa_SS.json", 2_259_272, "def542cd9a2df65dac74f7ac41b759ff"),
    ("MoTa_Test.json", 77_462, "b8a5d0392d82f73dcab0b57a5487a6ef"),
    ("MoW_SS.json", 2_225_293, "5a206da7ed45a78154f7e9f70b68c3bf"),
    ("MoW_Test.json", 76_538, "ea7e9bab4c99f1e4bba89c37929f3598"),
    ("Mo_AIMD.json", 2_301_487, "edd8c9b2949afd83b0483b5da438f663"),
    ("Mo_Elastic.json", 120_791, "f6bc0a2b0cab7932c51d0b8fc062cece"),
    ("Mo_Surface.json", 50_729, "0a8f6c3b44266175cf3bc9262efc293a"),
    ("Mo_Test.json", 345_449, "24c99625eba1d5dadbf1b89a75078225"),
    ("Multinary_Test.json", 420_234, "4810321984d4d5a5937deba550f28b2f"),
    ("NbMo_SS.json", 2_258_085, "0ab98d4d02f801f992be57e9e2c0a296"),
    ("NbMo_Test.json", 77_573, "ee4e31aa7f24a6f0df5952d467f612ab"),
    ("NbTa_SS.json", 2_276_316, "d66c3bc64169910c086f0b94102b10ea"),
    ("NbTa_Test.json", 77_755, "cae560141b4c9b035251ec459574c4a4"),
    ("NbW_SS.json", 2_244_292, "413c485c269ed13fc918f28bcbbe7603"),
    ("NbW_Test.json", 77_358, "a625d0dfa7f1de3941d5e00ada88521f"),
    ("Nb_AIMD.json", 2_274_784, "a45f03d4246c9696f812237940be4cf1"),
    ("Nb_Elastic.json", 119_648, "3c366f0ea6630597d29a8b426b9c2726"),
    ("Nb_Surface.json", 68_250, "668f4878ec6b79e1730cb6e708e2f86e"),
    ("Nb_Test.json", 341_670, "dd620b3c7cc06e5d00c6474392477ce3"),
    ("TaW_SS.json", 2_249_424, "883677a9b1db6bcbe61361f1e7b6f915"),
    ("TaW_Test.json", 77_210, "10eba5b0e9d626c46224a343fa4d702d"),
    ("Ta_AIMD.json", 2_286_410, "308c124fefac2f6a937e747947487be3"),
    ("Ta_Elastic.json", 119_734, "6d2d8698e2b12393b3dc9165b1843b3e"),
    ("Ta_Surface.json", 73_475, "34064a954eac1d6114dc9efe800b0a5d"),
    ("Ta_Test.json", 343_093, "6d3c2089df38ab44d46b12d36f24c056"),
    ("W_AIMD.json", 2_263_559, "73e04af44f80b4b5dfcf8826b2da2274"),
    ("W_Elastic.json", 118_836, "f520a0c09ab2e31242f6615abd1537e7"),
    ("W_Surface.json", 59_611, "599c915ba382d20b42b42483ca27797f"),
    ("W_Test.json", 339_349, "cce6544483de1682cca6b3bc6a7577cb"),
)
RELAXATION_FILES = (
    ("random1000100.traj", 882_121, "b1c31944e5b9088ffa9eb555669bfd3e"),
    ("random1000102.traj", 2_898_792, "5073e383562ca802fdd2d71cef933b6f"),
    ("random1000110.traj", 1_640_730, "1e8cb7dd33e59085d3752d62fc76ce3c"),
    ("random1000120.traj", 827_188, "f1cddd812c934868bcc7efe2338ec304"),
    ("random1000127.traj", 2_253_138, "3d3bf93bc1f5ec7ec2ec51884092f3b0"),
    ("random1000129.traj", 1_973_021, "e7bda860f9e3573952c054d98c2073d0"),
)
ANI1_FILES = (
    ("ani_gdb_s01.h5", 634_677, "68dadbe133382afc88b30e111df4a063"),
    ("ani_gdb_s02.h5", 3_647_595, "3c817e50516e5421e89c1ef9872252af"),
)
MPTRJ_1K_FILES = (("mptrj-random-1k.xyz", 3_731_695, "2ea94aee9266da943f307603af7420e3"),)
MAD_1K_FILES = (("mad_small_val.xyz", 3_476_228, "27065b7b293911d14606986b56ae0706"),)


def github_set(
    name: str,
    script: str,
    licence: str,
    place: str,  # OWNER/REPOSITORY/COMMIT/FOLDER
    files: tuple[tuple[str, int, str], ...],  # name, size, MD5
    there: str = "",  # the name of the only file in the repository, where it is another one
) -> PublishedSet:
    """Return a set of files in a repository, which a script for the user's own data reads."""
    owner, repository, commit, _ = place.split("/", 3)
    found = tuple(
        PublishedFile(file, f"{GITHUB}/{place}/{there or file}", size / 1e9, size, md5) for file, size, md5 in files
    )
    page, origin = f"https://github.com/{owner}/{repository}", f"{owner}/{repository} at {commit[:8]}"
    return PublishedSet(name, page, origin, found, script=script, licence=licence)


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
    github_set(
        *("bpa3_train", "extxyz", "MIT"),
        "davkovacs/BOTNet-datasets/29e6d467317e4b5967b7ea5cbee54de953fa0d45/dataset_3BPA",
        BPA3_FILES,
    ),
    github_set(
        *("ethanol_methanol", "extxyz", "MIT"),
        "davkovacs/BOTNet-datasets/29e6d467317e4b5967b7ea5cbee54de953fa0d45/dataset_ethanol",
        ETHANOL_FILES,
    ),
    github_set(
        *("MoNbTaW", "pymatgen_json", "BSD-3-Clause"),
        "materialsvirtuallab/maml/f7c0b6f687c994b3bb87a380bffcc1c041781b4d/mvl_models/pes/MoNbTaW/training",
        ALLOY_FILES,
    ),
    github_set(
        *("mptrj_1k", "extxyz", "MIT"),
        "microsoft/mattersim/296630372948fd35613939d14d3f97daa27cefda/data/benchmarks",
        MPTRJ_1K_FILES,
    ),
    github_set(
        *("mad_1k", "extxyz", "CC BY 4.0"),
        "metatensor/metatrain/7f1c6f6cdd9e5b7c10883210bbcf777eb8bd572a/test_long_range",
        MAD_1K_FILES,
        there="small.xyz",
    ),
    github_set(
        *("ani1_gdb", "pyanitools", "CC BY 4.0"),
        "aiqm/torchani/2359a387ed728460d160ab8407c57b38a06a09ae/torchani/resources",
        ANI1_FILES,
    ),
    github_set(
        *("oc20_relaxations/traj", "ase_files", "CC BY 4.0"),
        "FAIR-Chem/fairchem/c18e4215194fae267dfbc7e0c3a5f357f31d13d6/ocpmodels/common/efficient_validation/debug_data",
        RELAXATION_FILES,
    ),
)
BY_NAME = {each.name: each for each in SETS}


def find_set(name: str) -> PublishedSet:
    """Return a published set by its name, or raise with the nearest known one."""
    if name in BY_NAME:
        return BY_NAME[name]
    subsets = [known for known in BY_NAME if known.split("/")[0] == name]
    hint = f"choose one of {', '.join(subsets)}" if subsets else suggest(name, list(BY_NAME))
    raise UserError(f"no published data set {name!r}; {hint}")
