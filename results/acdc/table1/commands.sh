# Run these in the folder in which compare_losses was started. To choose a GPU, add --device=cuda:1.

# ce_dice, seed 0
python -m monai.bundle run "--config_file=['bundles/acdc_mri_nacl_segmentation/configs/train.yaml','bundles/acdc_mri_nacl_segmentation/configs/losses/ce_dice.yaml']" --bundle_root=bundles/acdc_mri_nacl_segmentation --dataset_dir=/tmp/acdc --ckpt_dir=results/acdc/table1/work/ce_dice/seed0 --output_dir=results/acdc/table1/work/ce_dice/seed0 --resume=True --val_interval=4 --num_workers=1 --seed=0
python -m monai.bundle run "--config_file=['bundles/acdc_mri_nacl_segmentation/configs/train.yaml','bundles/acdc_mri_nacl_segmentation/configs/evaluate.yaml']" --bundle_root=bundles/acdc_mri_nacl_segmentation --dataset_dir=/tmp/acdc --ckpt_dir=results/acdc/table1/work/ce_dice/seed0 --output_dir=results/acdc/table1/work/ce_dice/seed0/eval --val_interval=4 --num_workers=1

# focal, seed 0
python -m monai.bundle run "--config_file=['bundles/acdc_mri_nacl_segmentation/configs/train.yaml','bundles/acdc_mri_nacl_segmentation/configs/losses/focal.yaml']" --bundle_root=bundles/acdc_mri_nacl_segmentation --dataset_dir=/tmp/acdc --ckpt_dir=results/acdc/table1/work/focal/seed0 --output_dir=results/acdc/table1/work/focal/seed0 --resume=True --val_interval=4 --num_workers=1 --seed=0
python -m monai.bundle run "--config_file=['bundles/acdc_mri_nacl_segmentation/configs/train.yaml','bundles/acdc_mri_nacl_segmentation/configs/evaluate.yaml']" --bundle_root=bundles/acdc_mri_nacl_segmentation --dataset_dir=/tmp/acdc --ckpt_dir=results/acdc/table1/work/focal/seed0 --output_dir=results/acdc/table1/work/focal/seed0/eval --val_interval=4 --num_workers=1

# entropy_penalty, seed 0
python -m monai.bundle run "--config_file=['bundles/acdc_mri_nacl_segmentation/configs/train.yaml','bundles/acdc_mri_nacl_segmentation/configs/losses/entropy_penalty.yaml']" --bundle_root=bundles/acdc_mri_nacl_segmentation --dataset_dir=/tmp/acdc --ckpt_dir=results/acdc/table1/work/entropy_penalty/seed0 --output_dir=results/acdc/table1/work/entropy_penalty/seed0 --resume=True --val_interval=4 --num_workers=1 --seed=0
python -m monai.bundle run "--config_file=['bundles/acdc_mri_nacl_segmentation/configs/train.yaml','bundles/acdc_mri_nacl_segmentation/configs/evaluate.yaml']" --bundle_root=bundles/acdc_mri_nacl_segmentation --dataset_dir=/tmp/acdc --ckpt_dir=results/acdc/table1/work/entropy_penalty/seed0 --output_dir=results/acdc/table1/work/entropy_penalty/seed0/eval --val_interval=4 --num_workers=1

# label_smoothing, seed 0
python -m monai.bundle run "--config_file=['bundles/acdc_mri_nacl_segmentation/configs/train.yaml','bundles/acdc_mri_nacl_segmentation/configs/losses/label_smoothing.yaml']" --bundle_root=bundles/acdc_mri_nacl_segmentation --dataset_dir=/tmp/acdc --ckpt_dir=results/acdc/table1/work/label_smoothing/seed0 --output_dir=results/acdc/table1/work/label_smoothing/seed0 --resume=True --val_interval=4 --num_workers=1 --seed=0
python -m monai.bundle run "--config_file=['bundles/acdc_mri_nacl_segmentation/configs/train.yaml','bundles/acdc_mri_nacl_segmentation/configs/evaluate.yaml']" --bundle_root=bundles/acdc_mri_nacl_segmentation --dataset_dir=/tmp/acdc --ckpt_dir=results/acdc/table1/work/label_smoothing/seed0 --output_dir=results/acdc/table1/work/label_smoothing/seed0/eval --val_interval=4 --num_workers=1

# svls, seed 0
python -m monai.bundle run "--config_file=['bundles/acdc_mri_nacl_segmentation/configs/train.yaml','bundles/acdc_mri_nacl_segmentation/configs/losses/svls.yaml']" --bundle_root=bundles/acdc_mri_nacl_segmentation --dataset_dir=/tmp/acdc --ckpt_dir=results/acdc/table1/work/svls/seed0 --output_dir=results/acdc/table1/work/svls/seed0 --resume=True --val_interval=4 --num_workers=1 --seed=0
python -m monai.bundle run "--config_file=['bundles/acdc_mri_nacl_segmentation/configs/train.yaml','bundles/acdc_mri_nacl_segmentation/configs/evaluate.yaml']" --bundle_root=bundles/acdc_mri_nacl_segmentation --dataset_dir=/tmp/acdc --ckpt_dir=results/acdc/table1/work/svls/seed0 --output_dir=results/acdc/table1/work/svls/seed0/eval --val_interval=4 --num_workers=1

# mbls, seed 0
python -m monai.bundle run "--config_file=['bundles/acdc_mri_nacl_segmentation/configs/train.yaml','bundles/acdc_mri_nacl_segmentation/configs/losses/mbls.yaml']" --bundle_root=bundles/acdc_mri_nacl_segmentation --dataset_dir=/tmp/acdc --ckpt_dir=results/acdc/table1/work/mbls/seed0 --output_dir=results/acdc/table1/work/mbls/seed0 --resume=True --val_interval=4 --num_workers=1 --seed=0
python -m monai.bundle run "--config_file=['bundles/acdc_mri_nacl_segmentation/configs/train.yaml','bundles/acdc_mri_nacl_segmentation/configs/evaluate.yaml']" --bundle_root=bundles/acdc_mri_nacl_segmentation --dataset_dir=/tmp/acdc --ckpt_dir=results/acdc/table1/work/mbls/seed0 --output_dir=results/acdc/table1/work/mbls/seed0/eval --val_interval=4 --num_workers=1

# nacl, seed 0
python -m monai.bundle run "--config_file=['bundles/acdc_mri_nacl_segmentation/configs/train.yaml','bundles/acdc_mri_nacl_segmentation/configs/losses/nacl.yaml']" --bundle_root=bundles/acdc_mri_nacl_segmentation --dataset_dir=/tmp/acdc --ckpt_dir=results/acdc/table1/work/nacl/seed0 --output_dir=results/acdc/table1/work/nacl/seed0 --resume=True --val_interval=4 --num_workers=1 --seed=0
python -m monai.bundle run "--config_file=['bundles/acdc_mri_nacl_segmentation/configs/train.yaml','bundles/acdc_mri_nacl_segmentation/configs/evaluate.yaml']" --bundle_root=bundles/acdc_mri_nacl_segmentation --dataset_dir=/tmp/acdc --ckpt_dir=results/acdc/table1/work/nacl/seed0 --output_dir=results/acdc/table1/work/nacl/seed0/eval --val_interval=4 --num_workers=1
