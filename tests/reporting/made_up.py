"""Made-up rows and cells: no report test needs an attack."""

from dataclasses import fields

import numpy as np
from scipy.stats import beta

from medpfl.core.types import Finding
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK
from medpfl.judging.types import Cell, Rate, Union

UNDEFENDED, LAPLACE = "NoDefense()", "LaplaceNoise(scale=0.01)"


def made(told):
    """Build a cell from ``summary.json``'s flat form, as far as it is given."""
    return Cell(**inflated(Cell, told))


def inflated(kind, told):
    values = {}
    for one in fields(kind):
        if isinstance(one.default, Rate):
            values[one.name] = Rate(*(told.get(f"{one.name}{end}") for end in ("", "_low", "_high")))
        elif told.get(one.name) is not None:
            value = told[one.name]
            values[one.name] = tuple(value) if isinstance(value, list) else value
    return values


def cell(attack="iDLG()", defense=UNDEFENDED, read=19, images=24, verdict="leaks", **more):
    """Return a cell's flat form, with a rate and its interval (Clopper and Pearson)."""
    numbers = {
        "asr": read / images,
        "asr_low": beta.ppf(0.025, read, images - read + 1) if read else 0.0,
        "asr_high": beta.ppf(0.975, read + 1, images - read) if read < images else 1.0,
    }
    return {
        "attack": attack,
        "defense": defense,
        "images": images,
        "verdict": verdict,
        "flags": [],
        **numbers,
        **more,
    }


def full(**more):
    """Return the same with every key in the file format."""
    known = {
        "asr_worst": 0.83,
        "ssim": 0.91,
        "ssim_low": 0.86,
        "ssim_high": 0.96,
        "psnr": 31.4,
        "mse": 0.0021,
        "identified": 0.92,
        "identified_low": 0.73,
        "identified_high": 0.99,
        "label_accuracy": 1.0,
        "seconds_per_image": 1.53,
        "evaluations": 12345,
        "zero_gradient": 0.04,
        "gallery": 24,
        "chance": 1 / 24,
        "asr_mean_image": 0.0,
        "asr_nearest": 0.04,
        "asr_random_update": 0.0,
        "ssim_mean_image": 0.42,
        "ssim_nearest": 0.51,
        "ssim_random_update": 0.03,
        "ncc": 0.97,
        "ncc_mean_image": 0.81,
        "ncc_nearest": 0.77,
        "ssim_noise": 0.04,
        "ncc_noise": 0.07,
        "control_asr": None,
    }
    return cell(**{**known, **more})


def united(summary, by=("defense",), **more):
    """Return the cells, with the union over the attacks on each defense: as high as the strongest attack."""
    found = []
    for one in summary:
        own = [c for c in summary if all(c.get(key) == one.get(key) for key in by)]
        top = max(own, key=lambda c: (c.get("asr") or 0, c.get("identified") or 0))
        keys = [f"{name}{end}" for name in ("asr", "identified") for end in ("", "_low", "_high")]
        union = {
            **{key: top.get(key) for key in keys},
            "attacks": len(own),
            "images": top.get("images") or 0,
            "updates": top.get("images") or 0,
            "gallery": top.get("gallery"),
            "identified_floor": top.get("chance"),
            "leaks_by": ["read"] if top.get("verdict") == LEAKS else [],
            "verdict": next((v for v in (LEAKS, NO_LEAK) if v in {c.get("verdict") for c in own}), INCONCLUSIVE),
            "flags": top.get("union_flags", []),
            "tolerance": 0.2,
            "updates_needed": 17,
            **more,
        }
        found.append(made({**one, "union": Union(**inflated(Union, union))}))
    return found


def row(attack="iDLG()", defense=UNDEFENDED, ssim: float | None = 0.95, image="0007", **more):
    values = {
        "attack": attack,
        "defense": defense,
        "model": "LeNet()",
        "data": "made-up",
        "plan": "Plan()",
        "grants": (),
        "control": "",
        "draw": 0,
        "stack": 0,
        "victim": 0,
        "position": 0,
        "image": image,
        "patient": None,
        "label": 0,
        "label_guess": 1,
        "scores": {"ssim": ssim, "psnr": 28.25},
        "success": (ssim or 0) >= 0.9,
        "identified": True,
        "gallery": 24,
        "chance": 1 / 24,
        "nearest_image": None,
        "loss": 0.0,
        "steps": 10,
        "evaluations": 10,
        "ended": "converged",
        "flags": (),
        "seed": 1,
        "engine": "vmap",
        "device": "cpu",
        "versions": {},
        "seconds": 1.0,
        "date": "2026-01-01",
    }
    return Finding(**{**values, **more})


def picture(finding):
    """Return a brightness gradient as the target image, with noise over it as the guess."""
    side = 28
    seed = sum(map(ord, finding.attack + finding.defense + finding.image))
    truth = np.add.outer(np.arange(side), np.arange(side)) * 4 + seed % 30
    noise = np.random.default_rng(seed).normal(0, 200 * (1 - finding.scores["ssim"]), truth.shape)
    return truth.astype(np.uint8), np.clip(truth + noise, 0, 255).astype(np.uint8)


SETTINGS = {
    "experiment": {
        "model": "LeNet()",
        "attacks": ["iDLG()", "GradientMatching(objective='cosine', restarts=4)"],
        "defenses": [UNDEFENDED, LAPLACE],
        "images": 24,
        "batch_size": 1,
        "seed": 20260101,
        "plan": "Plan(learning_rate=0.01)",
    },
    "grants": ["labels", "defense"],
    "data": {
        "classes": {"class 0": 12, "class 1": 12},
        "images": 24,
        "shape": [1, 28, 28],
        "patients": None,
        "skipped": 2,
        "source": "a folder of images",
    },
    "model": {"parameters": 16330, "engine": "vmap"},
    "versions": {"medpfl": "0.1.0", "torch": "2.14.1"},
    "device": "cpu",
    "seed": 20260101,
    "started": "2026-01-01",
    "notes": ["2 files could not be read and were skipped"],
    "command": "medpfl audit --attack iDLG --defense 'LaplaceNoise(scale=0.01)'",
}
