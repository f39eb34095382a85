"""MONAI Label's app for bundles, extended by quality: in answers, and to pick the image with the
lowest or the most uncertain one; and by a calibration on the labels submitted.

`scripts/monai_label` renames the app's own `main.py` to `monaibundle.py` and puts this file in its
place.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import monai.bundle
import monaibundle
from fastapi import HTTPException
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask

# Buffers of weights that a network gets when it loads them
OF_THE_CALIBRATION = {
    *("reference", "tests", "fitted_on", "temperature"),
    *("bias_scale", "bias_shift", "vector_scale", "vector_shift"),
}


def remember(datastore: Datastore, image: str, record: dict[str, Any], **scores: float) -> None:
    """Keep the estimates of an image, with what tells the validation scans of the weights apart."""
    kept = {name: record[name] for name in ("scan", "patient", "estimate", "rows")}
    scores["expected_dsc"] = record["estimate"] or 0.0
    known = {"quality": kept, "reference": digest(record["reference"])}
    datastore.update_image_info(image, {**scores, **known})


def digest(reference: dict[str, Any]) -> str:
    """Return what tells the validation scans of other weights apart."""
    return hashlib.sha256(json.dumps(reference).encode()).hexdigest()


class UncertaintyScoring(ScoringMethod):
    """Scores each image without a label by the mean of its uncertainty map, and by its expected
    DSC.
    """

    def __init__(self, model: InferTask) -> None:
        super().__init__("Mean uncertainty and expected DSC of images without a label")
        self.model = model

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, int]:
        images, failed = datastore.get_unlabeled_images(), 0
        for image in images:
            request_map = {
                "image": datastore.get_image_uri(image),
                "show_uncertainty": True,
                "skip_writer": "true",
            }
            try:
                _, data = self.model({**request, **request_map})
            except Exception:  # one unsuitable file must not keep the others from being scored
                logging.getLogger(__name__).exception("%s: not scored", image)
                failed += 1
            else:
                uncertainty = float(data["pred"].mean())
                remember(datastore, image, data["quality"], uncertainty=uncertainty)
        return {"executed": len(images) - failed, "failed": failed}


class Pick(Strategy):
    """Picks the image without a label that has the highest score, times a sign; images without a
    score come last. The server scores all of them when it starts, and after each pick.
    """

    def __init__(self, text: str, score: str, sign: int) -> None:
        super().__init__(text)
        self.score, self.sign = score, sign

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        images = datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))
        infos = {image: datastore.get_image_info(image) for image in images}
        if not infos:
            return None
        image = max(infos, key=lambda name: self.sign * infos[name].get(self.score, -2 * self.sign))
        picked = {"id": image, self.score: infos[image].get(self.score)}
        scored = sum(self.score in info for info in infos.values())
        if scored < len(infos):
            picked["note"] = f"{scored} of {len(infos)} images are scored, the server goes on."
        return picked


class CalibrateTask(TrainTask):
    """Calibrates the weights that the server runs on the labels submitted so far, by the bundle's
    calibrate.yaml.
    """

    def __init__(self, bundle: str) -> None:
        super().__init__("Calibrate the network on the labels submitted so far, without training")
        self.bundle = Path(bundle)

    def config(self) -> dict[str, Any]:
        return {"device": ["cpu"], "calibrator": ["advised", "none", "temperature", "bias"]}

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        # Of the bundle, which is on the path after the server has loaded it
        from calib_components.errors import InputError

        weights = self.bundle / "models" / "model.pt"
        if weights.with_name("last.ckpt").exists():
            raise InputError(
                "The network was trained on labels submitted here. Calibrate it on others, with"
                " configs/calibrate.yaml."
            )
        labelled = datastore.datalist()
        if not labelled:
            raise InputError("No labels have been submitted yet.")
        choice = _first(request.get("calibrator", "advised"))
        configs = [str(self.bundle / "configs" / f"{name}.yaml") for name in ("train", "calibrate")]
        output = self.bundle / "eval"
        monai.bundle.run(
            config_file=configs,
            bundle_root=str(self.bundle),
            device=_first(request.get("device", "cpu")),
            load_path=str(weights),
            calibrated_path=str(weights),
            output_dir=str(output),
            overwrite=True,
            calibrator=None if choice == "advised" else choice,
            **{"validate::dataset::data": labelled},
        )
        return {"labels": len(labelled), "calibrators": (output / "calibrators.csv").read_text()}


def _is_alarm(record: logging.LogRecord) -> bool:
    """Whether a message is more than that the weights hold what their calibration needs, or are an
    ensemble's, which MONAI Label finds missing in the network.
    """
    found = re.search(r"Checkpoint keys don't match.*?: \{(.*)\}$", record.getMessage())
    if found:
        names = {*re.findall(r"'([^']+)'", found[1])}
        return not (names <= OF_THE_CALIBRATION or any(".members." in name for name in names))
    return "unless load_strict is set" not in record.getMessage()


logging.getLogger("monailabel.tasks.infer.basic_infer").addFilter(_is_alarm)


def _first(value: Any) -> Any:
    """Return the first of the values that a client may choose from, or the chosen one."""
    return value[0] if isinstance(value, list) else value


def _with_weights(
    task: InferTask, post_transforms: Callable[..., Any], data: dict[str, Any]
) -> Any:
    """Give the transforms the network that the server runs, whose weights hold the validation
    scans.
    """
    transforms = post_transforms(data)
    for transform in transforms:
        if hasattr(transform, "network"):
            transform.network = task._get_network(data["device"], data)
    return transforms


# The server looks for a direct subclass of MONAILabelApp
class BundleApp(monaibundle.MyApp, MONAILabelApp):
    """MONAI Label's app for bundles: answers have the `quality` of the scan, and what all images so
    far say together; images can be picked by it.

    There are a training called `calibrate`, a scoring method called `uncertainty`, and the
    strategies `uncertainty` and `quality`.
    An image that cannot be segmented is answered with the reason.
    """

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        with self._answering():
            # Of the bundle, which is on the path after the server has loaded it
            from calib_components.errors import InputError, check_choice

            image, studies = request["image"], datastore or self.datastore()
            if not (os.path.exists(image) or studies.get_image_uri(image)):
                raise InputError(f"There is no image called {image}.")
            typed = str(request.get("show_uncertainty", False)).lower()
            check_choice("show_uncertainty", typed, ("true", "false"))
            answer = super().infer({**request, "show_uncertainty": typed == "true"}, datastore)
            self._add_folder(image, answer["params"])
            return answer

    def _add_folder(self, image: str, record: dict[str, Any]) -> None:
        """Add to the quality of an image whether all images so far look like the training's: then
        it has limits.
        """
        from calib_workflows.pages import quality

        datastore = self.datastore()
        images = datastore.list_images()
        if image in images:
            remember(datastore, image, record)
        known = record.pop("reference")
        infos = [datastore.get_image_info(each) for each in images]
        same = digest(known)
        records = [info["quality"] for info in infos if info.get("reference") == same]
        review = quality.Review.from_options().among(len(records))
        answer, unlike = quality.conclude(records, quality.from_data(known), review)
        record["folder"] = [*answer.sentences, *filter(None, [answer.advice])]
        if unlike:
            record.update(quality.without_limits(record))

    def train(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._answering():
            return super().train(request)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Answer a mistake of the client, or a missing image, with the reason."""
        from calib_components.errors import error_line

        try:
            yield
        except Exception as error:
            line = error.msg if isinstance(error, MONAILabelException) else error_line(error)
            if isinstance(error, FileNotFoundError):
                line = f"There is no such image: {error}"
            if line is None:
                raise
            # The client need not know where the server keeps its images
            raise HTTPException(422, line.replace(f"{self.studies}/", "")) from error

    def init_infers(self) -> dict[str, InferTask]:
        infers = super().init_infers()
        for name in self.models:
            # Of the item; what is there becomes a part of the answer
            infers[name].output_json_key = "quality"
            infers[name].post_transforms = functools.partial(
                _with_weights, infers[name], infers[name].post_transforms
            )
        return infers

    def init_trainers(self) -> dict[str, TrainTask]:
        (bundle,) = self.models.values()
        return {**super().init_trainers(), "calibrate": CalibrateTask(bundle)}

    def init_strategies(self) -> dict[str, Strategy]:
        own = {
            "uncertainty": Pick("The most uncertain image", "uncertainty", 1),
            "quality": Pick("The image with the lowest expected DSC", "expected_dsc", -1),
        }
        return {**super().init_strategies(), **own}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        (model,) = (self._infers[name] for name in self.models)
        return {**super().init_scoring_methods(), "uncertainty": UncertaintyScoring(model)}
