"""MONAI Label's app for bundles, extended by active learning: it can pick the most uncertain image.

`scripts/monai_label` renames the app's own `main.py` to `monaibundle.py` and puts this file in its place.
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
    """Scores each image without a label by the mean of its uncertainty map."""

    def __init__(self, model: InferTask) -> None:
        super().__init__("Mean uncertainty of images without a label")
        self.model = model

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, int]:
        images, failed = datastore.get_unlabeled_images(), 0
        for image in images:
            request_map = {"image": datastore.get_image_uri(image), "show_uncertainty": True, "skip_writer": "true"}
            try:
                _, data = self.model({**request, **request_map})
            except Exception:  # one unsuitable file must not keep the others from being scored
                logging.getLogger(__name__).exception("%s: not scored", image)
                failed += 1
            else:
                datastore.update_image_info(image, {"uncertainty": float(data["pred"].mean())})
        return {"executed": len(images) - failed, "failed": failed}


class MostUncertain(Strategy):
    """Picks the image without a label that has the highest score; images without a score come last."""

    def __init__(self) -> None:
        super().__init__("The most uncertain image")

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        images = datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))
        scores = {image: datastore.get_image_info(image).get("uncertainty", -1) for image in images}
        if not scores:
            return None
        image = max(scores, key=scores.__getitem__)
        return {"id": image, "uncertainty": scores[image]}


class BundleApp(monaibundle.MyApp, MONAILabelApp):  # the server looks for a direct subclass of MONAILabelApp
    """MONAI Label's app for bundles, with a scoring method and a strategy called `uncertainty`."""

    def init_strategies(self) -> dict[str, Strategy]:
        return {**super().init_strategies(), "uncertainty": MostUncertain()}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        (model,) = (self._infers[name] for name in self.models)
        return {**super().init_scoring_methods(), "uncertainty": UncertaintyScoring(model)}
