"""The brain-age model: fit, predict over Dask blocks of subjects, save, load."""

import hashlib
import json
import logging
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.atlas.regions import RegionSet
from scalebrain.cluster.tasks import map_tasks, on_gpu_workers, once_per_worker
from scalebrain.cluster.threads import one_thread_each
from scalebrain.errors import ConfigError, ModelFileError, StatisticsError
from scalebrain.features.inclusion import flags, included_people, inclusion, same_people, texts
from scalebrain.features.lesion_policy import POLICIES, LesionPolicy, treatment_of
from scalebrain.features.nodes import MAX_LESIONED, node_features
from scalebrain.features.surface_nodes import surface_features, surface_level
from scalebrain.graph.build import Graph, build_graph
from scalebrain.graph.calibrate import conformal_radius, fit_bias, region_metrics
from scalebrain.graph.card import card_html, card_text
from scalebrain.graph.checkpoint import Checkpoint, training_key
from scalebrain.graph.folds import assign_folds, linked_cohorts
from scalebrain.graph.images import check_images, images_of
from scalebrain.graph.impute import RegionImputer
from scalebrain.graph.known import known_folds, person_keys, subject_keys
from scalebrain.graph.references import References
from scalebrain.graph.saved import check_saved, read_number
from scalebrain.graph.train import (
    Fold,
    Training,
    balanced_weights,
    forward,
    train_fold,
)
from scalebrain.variables import annotate, validate

__all__ = [
    "BrainAgeModel",
    "brain_age",
    "build_network",
    "features_of",
    "lesioned_regions",
    "load_network",
    "matching_features",
    "present_flag",
]

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float64]

_FORMAT = 3
_MAX_BYTES = 2**31


def features_of(
    ds: xr.Dataset, nodes: str = "volume", *, policy: LesionPolicy | None = None
) -> xr.Dataset:
    """Dataset with ``node_features``: computed when there are none, or for another policy."""
    if "node_features" in ds and policy is None:
        return ds
    level = surface_level(nodes)
    if level is None:
        treatment = policy or treatment_of(ds) or POLICIES[0]
        return ds.assign(node_features(ds, policy=treatment).data_vars)
    treatment = policy or POLICIES[0]
    other = [dim for dim in ("node", "edge") if dim in ds.dims]
    found = surface_features(ds, level=level, policy=treatment)
    return ds.drop_dims(other).assign_coords(found.coords).assign(found.data_vars)


@dataclass(frozen=True)
class BrainAgeModel:
    """Regional brain ages from node features: K networks with their calibration.

    Parameters
    ----------
    graph
        Nodes, edges and regions.
    features
        Names of the node features, in order.
    training
        Hyper-parameters.
    folds
        What every fold learned.
    radius
        (region,) half-width of the conformal interval, years.
    fold_of
        Fold of every training subject, by the hash of its scan.
    metrics
        Out-of-fold scores of every region.
    about
        Provenance: space, versions, training ages, simulated or not.
    path
        Directory that the model was saved to or loaded from.
    fold_of_person
        Fold of every training subject, by the hash of its dataset and person.
    """

    graph: Graph
    features: tuple[str, ...]
    training: Training
    folds: tuple[Fold, ...]
    radius: npt.NDArray[np.float64]
    fold_of: dict[str, int]
    metrics: dict[str, dict[str, float]]
    about: dict[str, Any]
    path: str = ""
    fold_of_person: dict[str, int] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        ds: xr.Dataset,
        *,
        regions: RegionSet | None = None,
        training: Training | None = None,
        coverage: float = 0.9,
        checkpoints: str | Path | None = None,
    ) -> "BrainAgeModel":
        """Train on the healthy references of a store.

        Parameters
        ----------
        ds
            Store with references; node features are computed when they are not there.
        regions
            Regions; the default 18 subregions when None.
        training
            Hyper-parameters; the defaults when None.
        coverage
            Coverage of the conformal interval.
        checkpoints
            Folder, which every worker sees, where each epoch is saved: a training that was
            killed goes on from there, to the same weights. One of other people, ages, folds or
            features, or of another version, starts anew. None to save none.

        Returns
        -------
        BrainAgeModel
            Model of all folds, calibrated on their held-out subjects.

        Raises
        ------
        StatisticsError
            When there are too few references, or all are of one age.
        ConfigError
            When `coverage` is no fraction.

        Notes
        -----
        Folds are by person, stratified by age. The people that decide when training
        stops come from the training folds, never from the held-out one.
        """
        validate(ds, "age", "group")
        training = training if training is not None else Training()
        if not 0 < coverage < 1:
            raise ConfigError(f"coverage is {coverage!r}, expected a fraction between 0 and 1.")
        graph = build_graph(ds, regions=regions)
        ds = features_of(ds)
        who = _references(ds, graph)
        age = np.asarray(ds["age"].values[who], dtype=np.float64)
        weight = balanced_weights(age) if training.balance_ages else None
        features = ds["node_features"].transpose("subject", "node", "feature")
        data = References.of(features.isel(subject=who), graph.rows, age, weight)
        people, cohort = same_people(ds)[who], None  # linked also by those who do not train
        if training.keep_cohorts:
            validate(ds, "cohort")
            cohort = ds["cohort"].values[who].astype(str)
        fold_of = assign_folds(
            age, training.folds, seed=training.seed, person=people, cohort=cohort
        )
        _check_ages(age, fold_of)
        keys, names_of = np.array(subject_keys(ds))[who], np.array(person_keys(ds))[who]
        names = tuple(str(f) for f in ds["feature"].values)
        versions = {n: version(n) for n in ("scalebrain", "torch", "torch-geometric")}
        key = ""
        split = {"fold": fold_of, "person": people}
        if cohort is not None:
            split["cohort"] = linked_cohorts(people, cohort)
        if checkpoints is not None:
            about = [graph.fingerprint, asdict(training), keys.tolist(), names, versions]
            key = training_key(data, split, {"about": about})
        with on_gpu_workers():  # all folds on one kind of processor
            trained = map_tasks(
                _train,
                range(training.folds),
                label="train",
                shared=_Shared(data, split, graph, training, str(checkpoints or ""), key),
                threads=1,
            )
        predicted = np.full((len(age), len(graph.regions)), np.nan)
        folds = []
        for number, fold in enumerate(trained):
            held = np.flatnonzero(fold_of == number)
            network = build_network(fold, graph, training, data.shape[1])
            for some, x in data.blocks(held):
                predicted[some], _ = forward(fold, network, x, graph)
            intercept, slope = fit_bias(age[held], predicted[held])
            folds.append(replace(fold, intercept=intercept, slope=slope))
        return cls(
            graph=graph,
            features=names,
            training=training,
            folds=tuple(folds),
            radius=conformal_radius(np.abs(predicted - age[:, None]), coverage, person=people),
            fold_of={str(k): int(f) for k, f in zip(keys, fold_of, strict=True)},
            fold_of_person={str(k): int(f) for k, f in zip(names_of, fold_of, strict=True)},
            metrics=region_metrics(age, predicted, fold_of, graph.regions, person=people),
            about={
                "space": _space(ds),
                "nodes": str(ds["node_features"].attrs.get("nodes", "volume")),
                "nodes_sha256": _nodes_hash(ds),
                "simulated": str(ds.attrs.get("simulated", "false")),
                "age_min": float(age.min()),
                "age_max": float(age.max()),
                "n_training": len(age),
                "n_people": int(np.unique(people).size),
                "coverage": float(coverage),
                "lesion_policy": str(ds["node_features"].attrs.get("lesion_policy", "")),
                "convolved_folds": sum(fold.is_convolved for fold in folds),
                "versions": versions,
                **images_of(ds),
            },
        )

    def predict(self, ds: xr.Dataset) -> xr.Dataset:
        """Predict regional brain ages; see :func:`scalebrain.brain_age`."""
        return brain_age(ds, self)

    def folds_of(self, ds: xr.Dataset) -> npt.NDArray[np.int64]:
        """Fold (subject,) that held everyone of the training out; -1 for others."""
        return known_folds(ds, self)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that is saved."""
        content = json.dumps(self._content(), sort_keys=True)
        digest = hashlib.sha256(content.encode())
        for name, values in sorted(self._arrays().items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    def _content(self) -> dict[str, Any]:
        """Everything that goes into model.json."""
        people = {"fold_of_person": self.fold_of_person} if self.fold_of_person else {}
        return people | {
            "format": _FORMAT,
            "graph_sha256": self.graph.fingerprint,
            "n_nodes": self.graph.n_nodes,
            "regions": list(self.graph.regions),
            "features": list(self.features),
            "training": asdict(self.training),
            "fold_of": self.fold_of,
            "metrics": self.metrics,
            "about": self.about,
        }

    def _arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Everything that goes into the safetensors file."""
        out: dict[str, npt.NDArray[np.generic]] = {
            "edges": self.graph.edges,
            "parcels": self.graph.parcels,
            "rows": self.graph.rows,
            "region_of_row": self.graph.region_of_row,
            "radius": self.radius,
        }
        for i, fold in enumerate(self.folds):
            out |= {f"fold{i}.weights.{k}": v for k, v in fold.weights.items()}
            for name in ("center", "spread", "curve", "intercept", "slope"):
                out[f"fold{i}.{name}"] = getattr(fold, name)
            out[f"fold{i}.age"] = np.array([fold.age_center, fold.age_spread])
            for r in range(len(self.graph.regions)):
                one = fold.imputer[r]
                out[f"fold{i}.impute_mean.{r}"] = one.mean
                out[f"fold{i}.impute_factors.{r}"] = one.factors
                out[f"fold{i}.impute_noise.{r}"] = np.array([one.noise])
        return out

    def save(self, path: str | Path) -> "BrainAgeModel":
        """Write the model directory: weights.safetensors, model.json and MODEL_CARD.md.

        Parameters
        ----------
        path
            Directory; made when it does not exist.

        Returns
        -------
        BrainAgeModel
            The model, knowing its directory.

        Raises
        ------
        StatisticsError
            When a score is not finite. What the directory holds stays as it was.
        """
        from safetensors.numpy import save

        folder = Path(path)
        content = {**self._content(), "fingerprint": self.fingerprint}
        try:
            text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False)
        except ValueError as error:
            raise StatisticsError(
                f"{folder}: the model is not saved, since a score of it is not finite ({error}). "
                "Some region has the same age for everyone: look at its node features."
            ) from error
        arrays = save({k: np.ascontiguousarray(v) for k, v in self._arrays().items()})
        card = card_text(self.training, self.features, self.metrics, self.about)
        folder.mkdir(parents=True, exist_ok=True)
        description = folder / "model.json"
        description.unlink(missing_ok=True)  # until it is whole again, there is no model
        (folder / "weights.safetensors").write_bytes(arrays)
        (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")
        partial = folder / "model.json.part"
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(description)
        return replace(self, path=str(folder.resolve()))

    @classmethod
    def load(cls, path: str | Path) -> "BrainAgeModel":
        """Load a model directory.

        Parameters
        ----------
        path
            Directory that :meth:`save` wrote.

        Returns
        -------
        BrainAgeModel
            Model that predicts what the saved one did, bit for bit.

        Raises
        ------
        ModelFileError
            When a file is missing, truncated, of another format, not that of a model, or not
            what its fingerprint says. Nothing in the directory is ever executed.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        folder = Path(path)
        way_out = "Train again: scalebrain train STORE MODEL_DIR."
        try:
            text = (folder / "model.json").read_text(encoding="utf-8")
            description = json.loads(text, parse_constant=read_number)
            if description["format"] != _FORMAT:
                raise ModelFileError(
                    f"{folder}: model format {description['format']}, this version reads "
                    f"{_FORMAT}. {way_out}"
                )
            weights = folder / "weights.safetensors"
            if weights.stat().st_size > _MAX_BYTES:
                raise ModelFileError(f"{weights}: larger than any model of this format.")
            arrays = load_file(weights)
            check_saved(description, arrays)
            model = cls._restore(description, arrays)
        except OSError as error:
            raise ModelFileError(f"{folder}: not a model directory ({error}). {way_out}") from error
        except SafetensorError as error:
            raise ModelFileError(f"{folder}: damaged weights ({error}). {way_out}") from error
        except (LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            if isinstance(error, ModelFileError):
                raise
            raise ModelFileError(
                f"{folder}: damaged model.json or weights ({error!r}). {way_out}"
            ) from error
        if model.fingerprint != description["fingerprint"]:
            raise ModelFileError(f"{folder}: weights and model.json do not match. {way_out}")
        return replace(model, path=str(folder.resolve()))

    @classmethod
    def _restore(cls, d: dict[str, Any], a: dict[str, npt.NDArray[Any]]) -> "BrainAgeModel":
        """Model from its description and arrays."""
        regions = tuple(str(r) for r in d["regions"])
        members = tuple(a["rows"][a["region_of_row"] == r] for r in range(len(regions)))
        graph = Graph(int(d["n_nodes"]), a["edges"], a["parcels"], regions, members)
        folds = []
        for i in range(int(d["training"]["folds"])):
            prefix = f"fold{i}.weights."
            folds.append(
                Fold(
                    weights={k[len(prefix) :]: v for k, v in a.items() if k.startswith(prefix)},
                    center=a[f"fold{i}.center"],
                    spread=a[f"fold{i}.spread"],
                    age_center=float(a[f"fold{i}.age"][0]),
                    age_spread=float(a[f"fold{i}.age"][1]),
                    imputer=tuple(
                        RegionImputer(
                            a[f"fold{i}.impute_mean.{r}"],
                            a[f"fold{i}.impute_factors.{r}"],
                            float(a[f"fold{i}.impute_noise.{r}"][0]),
                        )
                        for r in range(len(regions))
                    ),
                    curve=a[f"fold{i}.curve"],
                    intercept=a[f"fold{i}.intercept"],
                    slope=a[f"fold{i}.slope"],
                )
            )
        return cls(
            graph=graph,
            features=tuple(str(f) for f in d["features"]),
            training=Training(**d["training"]),
            folds=tuple(folds),
            radius=a["radius"],
            fold_of={str(k): int(v) for k, v in d["fold_of"].items()},
            fold_of_person={str(k): int(v) for k, v in d.get("fold_of_person", {}).items()},
            metrics=d["metrics"],
            about=d["about"],
        )

    def _repr_html_(self) -> str:
        """Show the model in a notebook."""
        return card_html(self.training, self.features, self.metrics, self.about)


def present_flag(ds: xr.Dataset) -> str:
    """Name of the flag of those who have what the nodes are made of."""
    on_surface = str(ds["node_features"].attrs.get("nodes", "")).startswith("surface")
    return "surface_present" if on_surface else "scan_present"


def _space(ds: xr.Dataset) -> str:
    """Space of the nodes."""
    return str(ds["node_features"].attrs.get("space", ds.attrs.get("space", "")))


def _references(ds: xr.Dataset, graph: Graph) -> npt.NDArray[np.int64]:
    """Positions of the healthy people that have an age and all nodes."""
    chosen = (ds["group"].values.astype(str) == "reference") & np.isfinite(ds["age"].values)
    present = present_flag(ds)
    chosen &= included_people(ds, on_surface=present == "surface_present")
    if present in ds:
        chosen &= flags(ds, present)
    who = np.flatnonzero(chosen)
    used = np.unique(graph.rows)
    features = ds["node_features"].isel(subject=who, node=used)
    known = xr.apply_ufunc(np.isfinite, features, dask="allowed").all("feature")
    complete = np.asarray(known.all("node").values)
    if not complete.all():
        logger.warning("%d references with missing nodes are left out", (~complete).sum())
    if who.size and not complete.any():
        absent = int((~known.any("subject")).sum())
        raise StatisticsError(
            f"None of {who.size} references has all nodes; {absent} nodes are missing in every "
            "one. On a grid coarser than 3 mm some nodes have no voxel: use a finer one."
        )
    if not who.size:
        raise StatisticsError(_no_references(ds, present))
    return np.asarray(who[complete])


def _no_references(ds: xr.Dataset, present: str) -> str:
    """Say why nobody can be learned from, and what to do."""
    healthy = ds.isel(subject=np.flatnonzero(ds["group"].values.astype(str) == "reference"))
    if healthy.sizes["subject"]:
        reasons = np.where(np.isfinite(healthy["age"].values), "no complete scan", "age missing")
        if "included" in healthy:
            reasons = np.where(flags(healthy, "included"), reasons, "not included")
        elif "lesion_hemisphere" in healthy:
            healthy = healthy.assign(inclusion(healthy, on_surface=present != "scan_present"))
        told = texts(healthy, "exclusion_reason")
        counts = Counter(np.where(told == "", reasons, told).tolist()).most_common()
        found = (
            f"All {healthy.sizes['subject']} reference subjects are left out: "
            f"{', '.join(f'{reason} ({n})' for reason, n in counts)}. Add what is missing to "
            "participants.tsv (sex, age, icv), or take back decisions of the quality control, and "
            "run again. Without references,"
        )
    else:
        found = (
            "No reference subject with age and a complete scan. Mark healthy subjects with "
            "group 'reference' in participants.tsv. Without any,"
        )
    return (
        f"{found} import the ages of another tool (scalebrain import-ages; ages: in the "
        "configuration of a study), or predict with a trained model (scalebrain predict)."
    )


def _check_ages(age: Array, fold_of: npt.NDArray[np.int64]) -> None:
    """Refuse to learn age from people of one age."""
    for number in np.unique(fold_of):
        taught = age[fold_of != number]
        if np.ptp(taught) == 0:
            raise StatisticsError(
                f"Fold {number + 1}: all {taught.size} references that it learns from are "
                f"{taught[0]:g} years old, so age cannot be learned. Bring references of other "
                "ages, or check the column age of participants.tsv."
            )


@dataclass(frozen=True)
class _Shared:
    """What the training of every fold needs; an empty folder keeps no checkpoints."""

    data: References
    split: dict[str, npt.NDArray[np.int64]]
    graph: Graph
    training: Training
    checkpoints: str
    key: str


def _train(number: int, shared: _Shared) -> Fold:
    """Train one fold, as a task."""
    file = None
    if shared.checkpoints:
        file = Checkpoint(Path(shared.checkpoints) / f"fold{number}.safetensors", shared.key)
    return train_fold(
        shared.data,
        np.flatnonzero(shared.split["fold"] != number),
        shared.graph,
        shared.training,
        number=number,
        person=shared.split["person"],
        cohort=shared.split.get("cohort"),
        checkpoint=file,
    )


def build_network(fold: Fold, graph: Graph, training: Training, n_features: int) -> Any:
    """Network of a fold with its weights, in evaluation mode, on the best device."""
    import torch

    from scalebrain.graph.layers import seeded_network

    network = seeded_network(graph, n_features, layer=training.layer, channels=training.channels)
    try:
        network.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in fold.weights.items()})
    except RuntimeError as error:
        raise ModelFileError(
            f"The weights do not fit the network: {error}. Train again."
        ) from error
    return network.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def load_network(model: BrainAgeModel) -> list[Any]:
    """Networks of all folds of a model."""
    n = len(model.features)
    return [build_network(fold, model.graph, model.training, n) for fold in model.folds]


@once_per_worker
def _loaded(path: str, fingerprint: str) -> tuple[BrainAgeModel, list[Any]]:
    """Load a saved model and its networks, once a worker."""
    model = BrainAgeModel.load(path)
    if model.fingerprint != fingerprint:
        raise ModelFileError(
            f"{path}: another model was saved there since. Load the model again and predict anew, "
            "or save each model to a folder of its own."
        )
    return model, load_network(model)


def _predict_block(
    x: Array, age: Array, fold: npt.NDArray[np.int64], *, source: "BrainAgeModel | tuple[str, str]"
) -> Array:
    """Ages, corrected PADs and imputed fractions of a block: (subject, region, 3)."""
    if isinstance(source, tuple):
        model, networks = _loaded(*source)
    else:
        model, networks = source, load_network(source)
    graph = model.graph
    n, n_regions = len(x), len(graph.regions)
    out = np.full((n, n_regions, 3), np.nan)
    seen = ~np.isnan(x).all(axis=(1, 2))
    if not seen.any():
        return out
    rows = np.asarray(x[seen][:, graph.rows], dtype=np.float32)  # as in training
    rows = np.where(np.isfinite(rows), rows, np.nan)  # an infinite feature is a missing one
    trained = fold[seen]
    years, corrected = (np.zeros((len(rows), n_regions)) for _ in range(2))
    imputed = np.full((len(rows), n_regions), np.nan)
    for i, (one, network) in enumerate(zip(model.folds, networks, strict=True)):
        use = np.flatnonzero((trained < 0) | (trained == i))
        if not use.size:
            continue
        with one_thread_each():
            found, imputed[use] = forward(one, network, rows[use], graph)
        known = age[seen][use][:, None]
        years[use] += found
        corrected[use] += found - known - (one.intercept + one.slope * known)
    n_networks = np.where(trained < 0, len(model.folds), 1)[:, None]
    out[seen, :, 0] = years / n_networks  # missing where one network has no age
    out[seen, :, 1] = corrected / n_networks
    out[seen, :, 2] = imputed
    return out


def matching_features(ds: xr.Dataset, model: BrainAgeModel) -> tuple[xr.Dataset, xr.DataArray]:
    """Check that a model is for the nodes of a Dataset.

    Parameters
    ----------
    ds
        Store; node features are computed when they are not there.
    model
        Model.

    Returns
    -------
    ds
        The same, with node features.
    features
        (subject, node, feature) those that the model takes, in its order; missing for who has
        no scan.

    Raises
    ------
    ModelFileError
        When the model was trained on another graph, other features, another space, or grey
        matter that is modulated where that of `ds` is not.
    """
    ds = features_of(ds, model.about["nodes"])
    names = tuple(str(f) for f in ds["feature"].values)
    missing = [f for f in model.features if f not in names]
    if missing:
        raise ModelFileError(
            f"The model needs the node features {', '.join(model.features)}; the data lack "
            f"{', '.join(missing)}. Train a model on the features that both have."
        )
    validate(ds, "edge_source", "edge_target", "node_parcel")
    edges = np.stack([ds["edge_source"].values, ds["edge_target"].values], axis=1)
    same = np.array_equal(model.graph.edges, edges)
    if not same or not np.array_equal(model.graph.parcels, ds["node_parcel"].values):
        raise ModelFileError("The model was trained on another graph of nodes than the store has.")
    wanted, found = model.about["nodes_sha256"], _nodes_hash(ds)
    if wanted and found not in ("", wanted):
        raise ModelFileError(
            "The model was trained on nodes of the same graph that take in other tissue than those "
            "of the data. Compute the features of both with one version of scalebrain, and train."
        )
    space = _space(ds) or model.about["space"]
    if space != model.about["space"]:
        raise ModelFileError(f"The model is for {model.about['space']}, the data are in {space}.")
    check_images(ds, model)
    features = ds["node_features"].sel(feature=list(model.features))
    if (present := present_flag(ds)) in ds:
        features = features.where(xr.DataArray(flags(ds, present), dims="subject"))
    return ds, features


def _nodes_hash(ds: xr.Dataset) -> str:
    """Hash of what the nodes of the features take in; empty where it is not known."""
    attrs = ds["node_features"].attrs
    old = "unknown" if str(attrs.get("nodes", "")).startswith("surface") else ""
    return str(attrs.get("nodes_sha256", old))


def brain_age(ds: xr.Dataset, model: BrainAgeModel | str | Path) -> xr.Dataset:
    """Predict the brain age of every region.

    Parameters
    ----------
    ds
        Store; node features are computed when they are not there.
    model
        Model, or the directory of one.

    Returns
    -------
    Dataset
        Over ``(subject, region)``, in years: ``brain_age``; ``brain_age_low`` and
        ``brain_age_high``; ``brain_pad = brain_age - age``; ``brain_pad_corrected``, less
        the age bias of held-out healthy subjects; ``imputed_fraction``, 1 where every node is
        missing, NaN for who has no scan.
        ``calibration_slope (region)``; ``extrapolated (subject)``, an age outside those of
        training (an unknown age is not: its brain-PAD is NaN), and ``out_of_fold (subject)``. Where
        the features were made with the policy ``exclude_region``, ``region_excluded (subject,
        region)`` marks regions with more than half of their nodes' tissue lesioned (nodes
        count alike), and the ages there are NaN.
        Lazy where the features are.

    Raises
    ------
    ModelFileError
        When the model was trained on another graph, other features, another space, or grey
        matter that is modulated where that of `ds` is not.

    Warns
    -----
    DataWarning
        When the model was trained on voxels of another size.

    Notes
    -----
    A person that the model was trained on, with this scan or another one, is predicted by the
    one network that has not seen them, everyone else by the mean of all. A person is known by
    the scan, and by the names of dataset and person. A corrected PAD carries the part
    ``calibration_slope`` of a true deviation.
    """
    validate(ds, "age")
    if not isinstance(model, BrainAgeModel):
        model = BrainAgeModel.load(model)
    ds, features = matching_features(ds, model)
    fold = known_folds(ds, model)
    age = ds["age"].astype(np.float64)
    if features.chunks:
        features = features.chunk(node=-1, feature=-1)
    regions = list(model.graph.regions)
    source: Any = (model.path, model.fingerprint) if model.path else model
    result = xr.apply_ufunc(
        _predict_block,
        features,
        age,
        xr.DataArray(fold, dims="subject"),
        kwargs={"source": source},
        input_core_dims=[["node", "feature"], [], []],
        output_core_dims=[["region", "value"]],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"region": len(regions), "value": 3}},
    ).assign_coords(region=regions)
    years = result.isel(value=0)
    radius = xr.DataArray(model.radius, dims="region")
    slope = np.mean([1 + fold.slope for fold in model.folds], axis=0)
    imputed = result.isel(value=2)
    if (present := present_flag(ds)) in ds:  # of a scan without an intact node, all is missing
        scanned = xr.DataArray(flags(ds, present), dims="subject")
        imputed = imputed.where(imputed.notnull() | ~scanned, 1.0)
    low, high = model.about["age_min"], model.about["age_max"]
    out = xr.Dataset(
        {
            "brain_age": years,
            "brain_age_low": years - radius,
            "brain_age_high": years + radius,
            "brain_pad": years - age,
            "brain_pad_corrected": result.isel(value=1),
            "imputed_fraction": imputed,
            "calibration_slope": ("region", slope),
            "extrapolated": (age < low) | (age > high),
            "out_of_fold": ("subject", fold >= 0),
        }
    )
    for name in ("brain_age", "brain_pad_corrected"):
        out[name].attrs["model_fingerprint"] = model.fingerprint
        out[name].attrs["model_trained_on_simulated"] = model.about["simulated"]
        out[name].attrs["model_layer"] = model.training.layer
        if (kept := model.about.get("convolved_folds")) is not None:  # earlier versions do not say
            out[name].attrs["model_convolved_folds"] = f"{kept} of {model.training.folds}"
    out["brain_age_low"].attrs["coverage"] = model.about["coverage"]
    if ds["node_features"].attrs.get("lesion_policy") == "exclude_region":
        out = _without_lesioned_regions(out, ds, model.graph)
    return annotate(out)


def lesioned_regions(ds: xr.Dataset, graph: Graph) -> xr.DataArray:
    """Regions (subject, region) of whose nodes most is lesioned."""
    validate(ds, "node_lesioned_fraction", way_out="Compute them with node_features.")
    lesioned = ds["node_lesioned_fraction"]
    parts = [
        lesioned.isel(node=graph.rows[graph.region_of_row == r]).mean("node")
        for r in range(len(graph.regions))
    ]
    fraction = xr.concat(parts, dim="region").transpose("subject", "region")
    return (fraction > MAX_LESIONED).assign_coords(region=list(graph.regions))


def _without_lesioned_regions(out: xr.Dataset, ds: xr.Dataset, graph: Graph) -> xr.Dataset:
    """Ages that are missing where most of the nodes of a region are lesioned."""
    excluded = lesioned_regions(ds, graph)
    ages = {
        n: v.where(~excluded)
        for n, v in out.items()
        if v.dims == ("subject", "region") and n != "imputed_fraction"
    }
    ages = {name: array.assign_attrs(out[name].attrs) for name, array in ages.items()}
    return out.assign({**ages, "region_excluded": excluded})
