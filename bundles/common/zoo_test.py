"""Train, evaluate and infer with the bundle whose name follows `test_` in the name of this file, on
made-up cases.
"""

import json
import shutil
import sys
import tempfile
import unittest
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.bundle import ConfigWorkflow

BUNDLE = Path("models", Path(__file__).stem.replace("test_", "", 1))


class TestBundle(unittest.TestCase):
    def setUp(self):
        sys.path.insert(0, str(BUNDLE))
        self.folder = Path(tempfile.mkdtemp())
        metadata = json.loads((BUNDLE / "configs" / "metadata.json").read_text())
        channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
        self.structures = [name.replace(" ", "_") for name in list(channels.values())[1:]]
        rng = np.random.default_rng(0)
        for case in range(4):
            label = np.zeros((40, 36, 6), np.uint8)
            for k in range(1, len(channels)):
                label[8 * k : 8 * k + 8, 8:20, 1:-1] = k
            image = (100 * label + rng.integers(0, 100, label.shape)).astype(np.int16)
            for name, array in (("images", image), ("labels", label)):
                (self.folder / "mine" / name).mkdir(parents=True, exist_ok=True)
                nib.save(
                    nib.Nifti1Image(array, np.eye(4)),
                    self.folder / "mine" / name / f"case{case}.nii.gz",
                )

    def tearDown(self):
        sys.path.remove(str(BUNDLE))
        shutil.rmtree(self.folder)

    def run_workflow(self, workflow_type, *names, **override):
        """Check and run a workflow of the bundle; return the names of the files that it writes."""
        output = self.folder / names[-1]
        workflow = ConfigWorkflow(
            workflow_type=workflow_type,
            config_file=[str(BUNDLE / "configs" / name) for name in names],
            logging_file=str(BUNDLE / "configs" / "logging.conf"),
            meta_file=str(BUNDLE / "configs" / "metadata.json"),
            bundle_root=str(BUNDLE),
            ckpt_dir=str(BUNDLE / "models" if workflow_type == "infer" else self.folder / "models"),
            output_dir=str(output),
            device="cpu",
            num_workers=0,
            **override,
        )
        workflow.initialize()
        assert not workflow.check_properties()
        workflow.run()
        workflow.finalize()
        return [path.name for path in output.iterdir()]

    def test_train_evaluate_infer(self):
        from calib_tools.prepare import prepare_data  # of the bundle, or installed

        mine, data, dataset = self.folder / "mine", self.folder / "data", BUNDLE.name.split("_")[0]
        prepare_data(
            "generic", mine, data, self.structures, like=dataset, fractions=(0.5, 0.25, 0.25)
        )
        self.run_workflow("train", "train.yaml", dataset_dir=str(data), max_epochs=1)
        assert (self.folder / "models" / "model.pt").is_file()
        assert "cases.csv" in self.run_workflow(
            "train", "train.yaml", "evaluate.yaml", dataset_dir=str(data)
        )
        maps = self.run_workflow("infer", "inference.yaml", dataset_dir=str(mine / "images"))
        assert "case3_probability.nii.gz" in maps


if __name__ == "__main__":
    unittest.main()
