"""The rules of the guard: every kind of bad or odd input, its code, and what happens to it.

``E`` keeps the subject out (or, for a whole table, stops), ``W`` keeps it and records the
code in the store, ``D`` is handled as described.
"""

from dataclasses import dataclass
from typing import Literal

__all__ = ["RULES", "Rule"]


@dataclass(frozen=True)
class Rule:
    """One rule of the guard.

    Parameters
    ----------
    code
        Name in rejected.tsv, warnings.tsv and the store.
    row
        Number of the row in the documentation's table; rules of one row are variants.
    action
        ``E`` rejected, ``W`` kept with a warning, ``D`` handled as documented.
    input
        What is given.
    behavior
        What happens.
    """

    code: str
    row: int
    action: Literal["E", "W", "D"]
    input: str
    behavior: str


#: Every rule, by code.
RULES: dict[str, Rule] = {
    rule.code: rule
    for rule in (
        Rule(
            "forms-left-right",
            1,
            "E",
            "qform and sform disagree about left and right",
            "the subject is rejected; both orientations are shown",
        ),
        Rule(
            "forms-differ",
            1,
            "W",
            "qform and sform disagree, but not about left and right",
            "the sform is used; the largest distance in mm is in the message",
        ),
        Rule(
            "no-orientation",
            2,
            "E",
            "Both orientation codes are 0",
            "rejected; `--assume-space` takes the affine as it stands",
        ),
        Rule(
            "assumed-orientation",
            2,
            "W",
            "Both orientation codes are 0, with `--assume-space`",
            "kept",
        ),
        Rule(
            "affine-rounding",
            3,
            "D",
            "Affines that differ by rounding",
            "the same grid within 0.001 mm; the largest residual of a subject's images is in "
            "`affine_residual`",
        ),
        Rule(
            "mask-orientation",
            4,
            "D",
            "A mask of the same shape in another orientation",
            "placed by its own affine, never by the header of another image",
        ),
        Rule(
            "mask-resampled",
            5,
            "D",
            "A lesion mask on another grid",
            "resampled by affine, nearest neighbor; `lesion_volume` is the mask's own",
        ),
        Rule(
            "mask-volume-changed",
            5,
            "W",
            "A lesion mask whose volume changes by more than 5 % when resampled",
            "kept; `lesion_volume_change` says by how much",
        ),
        Rule(
            "image-resampled",
            5,
            "W",
            "A T1w or grey-matter image on another grid of the same space",
            "resampled by affine, linear",
        ),
        Rule(
            "not-in-template-space",
            6,
            "E",
            "A T1w or grey-matter image that does not lie on the template",
            "rejected; the correlation with the template is shown",
        ),
        Rule(
            "lesion-outside-brain",
            6,
            "E",
            "A lesion mask with more than half of its voxels outside the template's brain",
            "rejected: probably in native space",
        ),
        Rule(
            "mirrored",
            6,
            "W",
            "An image, or a dataset of ten or more people, that fits the template better mirrored",
            "kept; both overlaps are in the store",
        ),
        Rule(
            "other-template",
            7,
            "W",
            "An image in another MNI variant than the store's",
            "kept as they are, not warped; both are named",
        ),
        Rule(
            "mixed-templates",
            7,
            "E",
            "Several MNI variants in one dataset",
            "the subjects outside the most frequent variant are rejected",
        ),
        Rule(
            "lesion-side",
            8,
            "E",
            "The mask's side contradicts the table's lesion side",
            "rejected; both are shown",
        ),
        Rule(
            "lesion-side-differs",
            8,
            "W",
            "A mask on both sides or the midline where the table says one side, or the reverse",
            "kept; both are shown",
        ),
        Rule(
            "paresis-side",
            8,
            "W",
            "Paresis on the side of the lesion, by the table or by the mask",
            "kept; both are shown: left and right may be swapped",
        ),
        Rule(
            "atlas-flipped",
            9,
            "E",
            "An atlas with left and right swapped",
            "refused when it is loaded, by anchor points",
        ),
        Rule("one-frame", 10, "D", "A 4-D image of one frame", "read as 3-D"),
        Rule(
            "many-frames", 11, "E", "A 4-D image of many frames", "rejected; `--volume` chooses one"
        ),
        Rule(
            "probabilistic-mask",
            12,
            "D",
            "A lesion mask of fractions in 0-1",
            "lesioned from 0.5; the threshold is in the store",
        ),
        Rule(
            "mask-below-threshold",
            12,
            "W",
            "A lesion mask of fractions that are all below 0.5",
            "kept as a mask without a lesion",
        ),
        Rule("mask-scaled", 13, "W", "A lesion mask of 0 and 255", "lesioned where not 0"),
        Rule(
            "mask-labels",
            14,
            "E",
            "A lesion mask with several labels",
            "rejected; `--lesion-labels` says which are lesion",
        ),
        Rule(
            "mask-unlabeled",
            14,
            "W",
            "A lesion mask of 0 and 1 where `--lesion-labels` does not name 1",
            "kept; its 1 is lesion",
        ),
        Rule(
            "nonfinite",
            15,
            "W",
            "NaN or infinite voxels in the brain",
            "kept as missing and counted",
        ),
        Rule(
            "nonfinite-many",
            15,
            "E",
            "More than 1 % NaN or infinite voxels in the brain, or any in a mask",
            "rejected",
        ),
        Rule("mask-negative", 16, "E", "Negative values in a mask", "rejected"),
        Rule(
            "mask-inverted",
            17,
            "E",
            "A mask over more than half of the brain",
            "rejected: probably inverted",
        ),
        Rule(
            "lesion-empty",
            18,
            "D",
            "An empty mask",
            "lesion load 0, side `none`, not missing; `preprocess` warns",
        ),
        Rule(
            "specks",
            19,
            "D",
            "Specks of few voxels",
            "kept; `--min-lesion` removes them, `lesion_volume_removed` says how much",
        ),
        Rule(
            "lesion-outside",
            20,
            "W",
            "A lesion partly outside the brain",
            "kept with the fraction; `lesion_volume` stays whole",
        ),
        Rule(
            "bilateral",
            21,
            "D",
            "A lesion with less than nine tenths of its voxels on one side",
            "side `bilateral` and a laterality index; no ipsilesional side, and excluded",
        ),
        Rule(
            "midline",
            22,
            "D",
            "A lesion of midline, brainstem or cerebellum",
            "side `midline`; no ipsilesional side",
        ),
        Rule(
            "parcel-covered",
            23,
            "D",
            "A lesion that covers a whole parcel or node",
            "its feature is missing, never the mean of nothing",
        ),
        Rule(
            "truncated",
            24,
            "E",
            "A truncated or damaged file, though its header loads",
            "rejected: every file is read in full",
        ),
        Rule("empty-file", 25, "E", "A file of zero bytes", "rejected"),
        Rule(
            "pointer",
            25,
            "E",
            "A Git-annex or LFS pointer in place of an image",
            "rejected; the way to fetch it is named",
        ),
        Rule("web-page", 25, "E", "A web page in place of an image", "rejected"),
        Rule("not-nifti", 25, "E", "Anything else in place of an image", "rejected"),
        Rule(
            "unreadable",
            25,
            "E",
            "A link to nothing, no regular file, a file that the system refuses to read",
            "rejected",
        ),
        Rule(
            "scaling",
            26,
            "D",
            "scl_slope 0; integers that overflow when scaled",
            "no scaling, as the standard has it; scaled in floating point",
        ),
        Rule(
            "bad-scaling",
            26,
            "E",
            "A slope or intercept that is not finite",
            "rejected; values that overflow when scaled count as infinite voxels",
        ),
        Rule(
            "oblique",
            27,
            "D",
            "Oblique or anisotropic voxels",
            "volumes by the determinant of the affine",
        ),
        Rule(
            "duplicate-id",
            28,
            "E",
            "One participant in several rows, also as `sub-01` beside `01` or in another case",
            "all of them rejected; the lines are listed",
        ),
        Rule(
            "duplicate-scan",
            29,
            "W",
            "The same scan under two ids, or one lesion mask beside different scans",
            "kept; told by the hash of the voxels",
        ),
        Rule(
            "scan-in-training",
            29,
            "D",
            "A scan that the model was trained on, also under another id",
            "predicted by the one network that has not seen it, `out_of_fold`; motor prediction "
            "stops when a scan or a person is used twice",
        ),
        Rule(
            "several-sessions",
            30,
            "E",
            "Several sessions of one person",
            "rejected; `--session` selects one, or `all`, with the variable `person`; folds keep "
            "each person whole",
        ),
        Rule(
            "visit-values",
            30,
            "W",
            "Several sessions of one person, and one row in the table that names none of them; or "
            "a `sub-*_sessions.tsv` without a row of the scan",
            "kept; age, days or motor score may be of another visit: `sub-*_sessions.tsv`, or a "
            "row a session, says them",
        ),
        Rule(
            "person-differs",
            30,
            "W",
            "Rows or sessions of one person that differ in sex or group",
            "kept, each with its own value; the values are shown",
        ),
        Rule(
            "several-images",
            30,
            "E",
            "Several runs or files of one kind",
            "rejected; the files are listed",
        ),
        Rule(
            "age-unit",
            31,
            "E",
            "Age in months or days, a date, a decimal comma",
            "rejected with a guess of the unit",
        ),
        Rule("bad-number", 31, "E", "Any other cell that is not a usable number", "rejected"),
        Rule("age-range", 32, "E", "An age range", "rejected"),
        Rule(
            "age-censored",
            32,
            "D",
            "Age `89+`",
            "89, and `age_censored`; left out of training and statistics",
        ),
        Rule(
            "extrapolated",
            33,
            "D",
            "Age outside the ages of training",
            "predicted, marked `extrapolated`, left out of all statistics but of lesions alone",
        ),
        Rule(
            "missing-covariate",
            34,
            "D",
            "A missing covariate or outcome",
            "kept, with a warning where it is age, a column that every analysis needs, or a motor "
            "score of another name; each model says its n and whom it left out",
        ),
        Rule(
            "sex-coded",
            35,
            "E",
            "Sex coded in numbers or unknown words",
            "rejected, unless participants.json gives the Levels",
        ),
        Rule(
            "site-in-one-fold",
            36,
            "D",
            "A site in one fold only",
            "sites are held out whole: none is predicted by a model that saw it",
        ),
        Rule(
            "small-site",
            37,
            "D",
            "A site with one person, or an outcome without variance",
            "the site is pooled by the random intercept; what cannot be fitted says why",
        ),
        Rule(
            "cohort-shared",
            37,
            "W",
            "A cohort (site) of the same name in two datasets",
            "kept: one cohort for the models; the name and the datasets are in the message",
        ),
        Rule(
            "cohort-alike",
            37,
            "W",
            "Cohorts that differ in case, spaces, leading zeros or `.0` alone",
            "kept: each is a cohort of its own; the names are in the message",
        ),
        Rule(
            "site-confounded",
            38,
            "E",
            "A site confounded with group or age",
            "the model and the harmonization are refused, the terms that depend on each other are "
            "named",
        ),
        Rule(
            "mixed-scales",
            39,
            "E",
            "Outcome scales mixed, or scores that a declared maximum would divide twice",
            "the table stops, unless participants.json declares each scale's maximum and direction",
        ),
        Rule(
            "group-mismatch",
            40,
            "W",
            "A reference with a lesion, or a stroke without a lesion mask",
            "kept; without a column group, a mask, days, or a side of a stroke make it `stroke`",
        ),
        Rule(
            "freesurfer-unfinished",
            41,
            "E",
            "FreeSurfer without recon-all.done, or with files missing",
            "rejected",
        ),
        Rule(
            "freesurfer-mixed",
            41,
            "E",
            "Mixed FreeSurfer versions in one dataset",
            "those outside the most frequent version are rejected; the version is in the store",
        ),
        Rule(
            "interrupted",
            42,
            "D",
            "Killed, disk full, out of memory",
            "the same command goes on; the store ends bit for bit the same",
        ),
        Rule("leaves-tree", 43, "E", "A path that leaves the tree by a link or `..`", "rejected"),
        Rule(
            "bad-id",
            44,
            "E",
            "A participant id with markup, spaces, or too long",
            "rejected by the BIDS rule, escaped wherever shown",
        ),
        Rule(
            "header-claims",
            45,
            "E",
            "A header that claims more voxels than there can be",
            "rejected before anything is allocated",
        ),
        Rule(
            "gzip-bomb",
            45,
            "E",
            "A stream that claims more than deflate can hold, or goes on far behind the image",
            "rejected; no more is allocated than the image of the header needs",
        ),
        Rule("not-probability", 46, "E", "Grey-matter probabilities outside 0-1", "rejected"),
        Rule("constant-image", 47, "E", "An image of one value in the brain", "rejected"),
        Rule(
            "gm-missing",
            51,
            "E",
            "A subject without grey-matter probabilities in a dataset where most have them",
            "rejected",
        ),
        Rule("no-table-row", 48, "E", "A subject folder without a row in the table", "rejected"),
        Rule("no-image", 49, "W", "A row in the table without an image", "kept as missing"),
        Rule(
            "withdrawn",
            50,
            "E",
            "A participant who withdrew consent",
            "kept out for good, and named in no table",
        ),
        Rule(
            "mask-needed",
            52,
            "E",
            "`preprocess`: someone with a stroke and no lesion mask",
            "left out: the lesion would pull the registration; references go without a mask",
        ),
        Rule(
            "brain-not-found",
            53,
            "E",
            "`preprocess`: a scan in which no brain is found, or that does not fit the template",
            "left out",
        ),
        Rule(
            "preprocessing-failed",
            54,
            "E",
            "`preprocess`: a step fails, or its process dies",
            "left out, also by `ingest` where files of it are missing; the same command tries it "
            "again",
        ),
        Rule(
            "poorly-normalized",
            55,
            "W",
            "`preprocess`: a scan that fits the template poorly, or a deformation with extremes",
            "kept; the numbers are in `*_desc-qc_quality.json`",
        ),
        Rule(
            "lesion-volume-changed",
            56,
            "W",
            "`preprocess`: a lesion whose volume changes by more than 20 % by the normalization",
            "kept; both volumes are in the mask's JSON",
        ),
        Rule(
            "mask-unused",
            57,
            "E",
            "`preprocess`: a lesion mask that belongs to no scan, or is in another space",
            "scans of that person that have no other mask are left out",
        ),
        Rule(
            "taken-as-reference",
            58,
            "W",
            "`preprocess`: a scan without a lesion mask of someone whose group is not known; "
            "`ingest`: such a scan beside a motor score, or a file like a lesion mask",
            "kept as that of a healthy reference",
        ),
        Rule(
            "mask-ignored",
            58,
            "W",
            "A file whose name speaks of a lesion, stroke, label or roi, and is not that of a "
            "lesion mask; a column of a manifest that is not lesion and like one of masks",
            "kept without it; the names that are read are in the message",
        ),
        Rule(
            "column-ignored",
            58,
            "W",
            "A column of a manifest that names files, and is none of those that are read",
            "kept without them; the names that are read are in the message",
        ),
        Rule(
            "mask-affine",
            59,
            "W",
            "A lesion mask with as many voxels as its T1w image, but another affine",
            "kept, and placed by its own affine; the distance is in the message",
        ),
        Rule(
            "mask-unplaced",
            59,
            "E",
            "A lesion mask with as many voxels as its T1w image, but without its affine: voxels of "
            "1 mm or an origin of 0 that the image does not have",
            "rejected by the ingest",
        ),
        Rule(
            "negative-intensities",
            60,
            "W",
            "`preprocess`: a T1w image with air below 0, or a head darker than air",
            "kept; shifted until air is 0, and what is below is cut to 0",
        ),
    )
}
