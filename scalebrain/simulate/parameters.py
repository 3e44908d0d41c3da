"""Every number of the simulator, with its unit and where it comes from."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scalebrain.atlas.regions import NETWORKS
from scalebrain.errors import ConfigError

__all__ = ["SimulationParameters"]


def _volume_loss() -> dict[str, float]:
    return {
        "SMN": 0.0030,
        "FPN": 0.0045,
        "DAN": 0.0040,
        "VLN": 0.0040,
        "DMN": 0.0045,
        "SAL": 0.0040,
        "AUD": 0.0035,
        "VIS": 0.0020,
        "LIM": 0.0050,
        "other": 0.0035,
    }


def _ipsilesional() -> dict[str, float]:
    return {
        "SMN": 0.95,
        "FPN": 0.80,
        "DAN": 0.70,
        "VLN": 0.85,
        "DMN": 0.60,
        "SAL": 0.90,
        "AUD": 0.75,
        "VIS": 0.54,
        "LIM": 0.60,
    }


@dataclass(frozen=True)
class SimulationParameters:
    """Parameters of the generative model.

    Every SD is between people at a fixed age unless it says otherwise; a *share* is a
    fraction of a variance. Values without a source are choices, made so that the simulated
    scans are as hard as real ones.

    Parameters
    ----------
    reference_age, stroke_age
        Youngest and oldest age (years); ages are uniform between them.
    pivot_age
        Age (years) at which tissue is that of the template.
    deviation_sd
        SD (years) of the true regional deviation, biological minus chronological age; a
        region's deviation is the mean over its parcels, and every region has this SD.
    deviation_person_share
        Share of the deviation's variance that all parcels of a person have in common.
    deviation_network_share
        Share that the two homologues of a network have in common on top of it.
    deviation_parcel_sd
        SD (years) of what a single parcel deviates on its own.
    volume_loss
        Fraction of grey matter lost per year of biological age, by network; a parcel of
        two networks loses their mean, ``other`` is for parcels of no network.
    volume_person_sd, volume_region_sd, volume_parcel_sd
        SD of the log grey-matter volume that is not aging: in common to a person, to the
        parcels of a network and hemisphere, and of a single parcel. The deformation adds
        to them; together regional volumes vary by 7-10% between people.
    contrast_loss
        Fraction of the grey/white contrast lost per year of biological age.
    contrast_person_sd, contrast_region_sd, contrast_parcel_sd
        SD of the log grey/white contrast that is not aging, as for volume.
    volume_rescan_sd, contrast_rescan_sd
        SD of the log volume and contrast of a parcel between two scans of one person; a
        third of the variance is in common to the scan.
    cohort_volume_sd, cohort_contrast_sd
        SD between cohorts of an offset on the log volume and contrast.
    cohort_intensity_sd
        SD between cohorts of the log intensity scale, which normalization takes out.
    cohort_noise
        Lowest and highest noise SD of a cohort, as a fraction of white-matter intensity.
    deformation_mm
        SD (mm) of the smooth displacement of a person's anatomy along each axis.
    deformation_knots_mm
        Distance (mm) of the knots of its cubic B-splines.
    registration_jitter_mm
        SD (mm) of the additional smooth displacement of each single scan.
    sharpness
        Exponent on the template's tissue probabilities: the template is an average of many
        people and blurrier than one of them.
    thinning_to_white
        Part of a grey-matter change that acts on the border to white matter; the rest acts
        on the border to cerebrospinal fluid.
    parcel_blend_mm
        SD (mm) of the Gaussian that blends parcels into one another at their borders.
    grey_white_contrast
        (white - grey) / white intensity at the pivot age.
    csf_intensity
        Cerebrospinal-fluid intensity as a fraction of white matter.
    texture
        Part of the template's own intensity detail that is kept.
    bias_sd, bias_knots_mm
        SD of the log multiplicative bias that correction has left, and the distance (mm)
        of its knots.
    segmentation_noise
        SD of the grey-matter probability's error at a probability of one half.
    white_intensity
        White-matter intensity of the written T1w in file units.
    thickness_anatomy_sd, thickness_noise_sd
        SD of the log cortical thickness that is a person's own anatomy, on points about 15 mm
        apart, and that is the error of a scan, on every vertex of fsaverage5.
    surface_contrast_anatomy_sd, surface_contrast_noise_sd
        The same of the log grey/white contrast along the surface.
    lesion_median_ml, lesion_log_sd
        Median (mL) and SD of the natural log of the lesion volume.
    lesion_range_ml
        Smallest and largest lesion (mL); draws outside are drawn again.
    subcortical_fraction
        Fraction of lesions whose seed lies in deep tissue along the corticospinal tract.
    lesion_csf_fraction
        Lowest and highest intensity inside a lesion: 1 is cerebrospinal fluid, 0 is the
        tissue that was there.
    lesion_irregularity
        Weight of smooth noise against distance in the cost of growth.
    early_fraction
        Fraction of strokes scanned earlier than 180 days after stroke.
    missing_motor_fraction
        Fraction of strokes without a motor score in the table.
    controls_at_stroke_sites
        Whether every cohort has references and strokes; if not, a third of the cohorts has
        references only and the others strokes only.
    ipsilesional_effects
        Years per SD of log10 lesion volume on the ipsilesional parcels of each network;
        a parcel of two networks gets their mean, a parcel of none 0. The range 0.54-0.95 is
        published, which network has which value is a choice.
    contralesional_network
        Network whose contralesional parcels get `contralesional_effect`.
    contralesional_effect
        Years per SD of log10 lesion volume (published -0.3747, rounded).
    cst_on_motor
        Standardized effect of the ipsilesional corticospinal-tract load on motor outcome
        (published).
    salience_on_motor
        Standardized effect of the ipsilesional salience-network load on motor outcome
        (a choice; no size was published).
    frontoparietal_on_motor
        Standardized effect of the contralesional frontoparietal deviation on motor outcome,
        or, in the rival direction, of motor outcome on that deviation (a choice).
    motor_center, motor_scale
        Motor score = center + scale x standardized motor outcome, clipped to [0, 1].
    icv_women, icv_men
        Mean and SD of the intracranial volume (mL).
    """

    reference_age: tuple[float, float] = (45.0, 82.0)
    stroke_age: tuple[float, float] = (30.0, 85.0)
    pivot_age: float = 60.0
    deviation_sd: float = 4.0
    deviation_person_share: float = 0.45
    deviation_network_share: float = 0.08
    deviation_parcel_sd: float = 2.0
    volume_loss: Mapping[str, float] = field(default_factory=_volume_loss)
    volume_person_sd: float = 0.05
    volume_region_sd: float = 0.04
    volume_parcel_sd: float = 0.03
    contrast_loss: float = 0.007
    contrast_person_sd: float = 0.008
    contrast_region_sd: float = 0.008
    contrast_parcel_sd: float = 0.015
    volume_rescan_sd: float = 0.028
    contrast_rescan_sd: float = 0.01
    cohort_volume_sd: float = 0.01
    cohort_contrast_sd: float = 0.005
    cohort_intensity_sd: float = 0.2
    cohort_noise: tuple[float, float] = (0.025, 0.04)
    deformation_mm: float = 1.0
    deformation_knots_mm: float = 24.0
    registration_jitter_mm: float = 0.15
    sharpness: float = 1.5
    thinning_to_white: float = 0.35
    parcel_blend_mm: float = 3.0
    grey_white_contrast: float = 0.27
    csf_intensity: float = 0.28
    texture: float = 0.7
    bias_sd: float = 0.008
    bias_knots_mm: float = 50.0
    segmentation_noise: float = 0.06
    white_intensity: float = 1000.0
    thickness_anatomy_sd: float = 0.06
    thickness_noise_sd: float = 0.06
    surface_contrast_anatomy_sd: float = 0.03
    surface_contrast_noise_sd: float = 0.06
    lesion_median_ml: float = 10.0
    lesion_log_sd: float = 1.2
    lesion_range_ml: tuple[float, float] = (0.4, 180.0)
    subcortical_fraction: float = 0.45
    lesion_csf_fraction: tuple[float, float] = (0.8, 1.0)
    lesion_irregularity: float = 0.8
    early_fraction: float = 0.04
    missing_motor_fraction: float = 0.02
    controls_at_stroke_sites: bool = True
    ipsilesional_effects: Mapping[str, float] = field(default_factory=_ipsilesional)
    contralesional_network: str = "VLN"
    contralesional_effect: float = -0.37
    cst_on_motor: float = -0.355
    salience_on_motor: float = -0.20
    frontoparietal_on_motor: float = 0.20
    motor_center: float = 0.58
    motor_scale: float = 0.16
    icv_women: tuple[float, float] = (1390.0, 110.0)
    icv_men: tuple[float, float] = (1560.0, 120.0)

    def __post_init__(self) -> None:
        """Check what would otherwise fail late or make a wrong cohort."""
        for name, value in self.to_dict().items():
            numbers = value.values() if isinstance(value, dict) else value
            numbers = [numbers] if isinstance(value, (int, float)) else numbers
            if isinstance(value, str):
                continue
            if not all(math.isfinite(number) for number in numbers):
                raise ConfigError(f"Simulation parameter '{name}' is {value}; it must be finite.")
            negative_ok = name.endswith(("_on_motor", "_effect", "_effects"))
            if not negative_ok and any(number < 0 for number in numbers):
                raise ConfigError(f"Simulation parameter '{name}' is {value}, below zero.")
            pair = isinstance(value, list) and not name.startswith("icv")
            if pair and (len(value) != 2 or value[0] > value[1]):
                raise ConfigError(
                    f"Simulation parameter '{name}' is {value}; give the lowest, then the highest."
                )
        for name, networks in (
            ("volume_loss", {*NETWORKS, "other"}),
            ("ipsilesional_effects", set(NETWORKS)),
        ):
            got = set(getattr(self, name))
            if got != networks:
                raise ConfigError(
                    f"Simulation parameter '{name}' has the networks {sorted(got)}, expected "
                    f"{sorted(networks)}. Give every network a value."
                )
        if self.contralesional_network not in NETWORKS:
            raise ConfigError(
                f"Simulation parameter 'contralesional_network' is "
                f"'{self.contralesional_network}', expected one of {', '.join(NETWORKS)}."
            )
        shares = self.deviation_person_share + self.deviation_network_share
        if shares >= 1:
            raise ConfigError(
                f"deviation_person_share + deviation_network_share is {shares:.2f}; it must stay "
                "below 1 to leave room for regional deviations."
            )

    def to_dict(self) -> dict[str, Any]:
        """All values as JSON types, in the order of the fields."""
        out: dict[str, Any] = {}
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Mapping):
                value = {str(key): float(number) for key, number in value.items()}
            elif isinstance(value, tuple):
                value = [float(number) for number in value]
            out[entry.name] = value
        return out
