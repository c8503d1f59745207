"""One plain function per number, used by benchmarks, rewards, data selection and experiments alike.

| module | numbers |
|---|---|
| `images` | PSNR, SSIM, MS-SSIM, MAE, RMSE, LPIPS, copies of the input, the change that an edit made |
| `masks` | Dice, IoU, 95 % Hausdorff distance |
| `answers` | normalization of answers, accuracy by named rules, token recall and F1 |
| `texts` | BLEU, ROUGE, METEOR, CIDEr-D |
| `clinical_models` | RaTEScore, RadGraph F1, CheXbert F1, GREEN |
| `ranking` | AUROC, F1, reader studies |
| `distributions` | FID, KID, Vendi score, mean distance |
| `nearest` | nearest training image, memorization |
| `image_text` | cosine of an image and its text |
| `image_features`, `classifiers` | local networks that these numbers look through |
| `intervals` | 95 % intervals: resampled patients, Wilson, Student |

Nothing else of this project is imported here. The folders beside these modules wrap them for the `evaluate` library.
"""
