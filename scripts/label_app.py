"""MONAI Label's app for bundles, which can ask for the image that the model is least sure of.

`scripts/monai_label` puts this file in place of the app's own `main.py`, and calls that one `monaibundle.py`.
"""

from __future__ import annotations

import logging
from typing import Any

import monaibundle
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy


class UncertaintyScoring(ScoringMethod):
    """Keeps, with each image that has no label yet, the mean of its uncertainty map."""

    def __init__(self, model: InferTask) -> None:
        super().__init__("Mean uncertainty of the images without a label")
        self.model = model

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, int]:
        images, failed = datastore.get_unlabeled_images(), 0
        for image in images:
            question = {"image": datastore.get_image_uri(image), "show_uncertainty": True, "skip_writer": "true"}
            try:
                _, data = self.model({**request, **question})
            except Exception:  # a file that the model cannot take must not keep the others from their score
                logging.getLogger(__name__).exception("%s: not scored", image)
                failed += 1
            else:
                datastore.update_image_info(image, {"uncertainty": float(data["pred"].mean())})
        return {"executed": len(images) - failed, "failed": failed}


class MostUncertain(Strategy):
    """Picks, of the images without a label, the one with the highest score; one without a score comes last."""

    def __init__(self) -> None:
        super().__init__("The image that the model is least sure of")

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        images = datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))
        scores = {image: datastore.get_image_info(image).get("uncertainty", -1) for image in images}
        if not scores:
            return None
        image = max(scores, key=scores.__getitem__)
        return {"id": image, "uncertainty": scores[image]}


class BundleApp(monaibundle.MyApp, MONAILabelApp):  # the server looks for a direct subclass of the latter
    """MONAI Label's app for bundles, with the scoring method and the strategy `uncertainty`."""

    def init_strategies(self) -> dict[str, Strategy]:
        return {**super().init_strategies(), "uncertainty": MostUncertain()}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        (model,) = (self._infers[name] for name in self.models)
        return {**super().init_scoring_methods(), "uncertainty": UncertaintyScoring(model)}
